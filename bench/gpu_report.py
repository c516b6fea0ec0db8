"""What a campaign on a GPU machine has measured so far: what is missing, `gpu.json`, and the printed tables."""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from neustream.catalog.machine import cpu_name, device_slug, gpu_names, num_cores
from neustream.cli.report import Column, format_table, number, percent, text
from neustream.files import write_atomically

PACKAGES = ("torch", "diffusers", "transformers", "numpy")
FIGURES = (
    "policy", "rate", "load", "seed", "injected", "request_goodput", "slo_attainment", "reject_rate", "mean_batch",
    "decision_share", "slowdown", "prediction_error", "client_lag", "waited_share", "complete",
)  # fmt: skip
"""What `gpu.json` keeps of a setting; its run's folder has the rest."""


def table_file(out: Path, model: str) -> Path:
    """The latency table of a model."""
    return out / "tables" / f"{model}.json"


def share_file(out: Path, model: str) -> Path:
    """What its steps cost outside the network."""
    return out / "step-shares" / f"{model}.json"


def plan_file(out: Path, model: str) -> Path:
    """Which rates, requests and steps its goodput is measured at: settled once, when its table is there."""
    return out / "plans" / f"{model}.json"


def run_folder(out: Path, model: str, policy: str, rate: float) -> Path:
    """The run of one setting."""
    return out / "runs" / f"{model}-{policy}-{rate:g}"


def read(path: Path) -> Any:
    """What a JSON file holds; None where it is not there or was cut short."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read_run(out: Path, model: str, policy: str, rate: float) -> dict[str, Any] | None:
    """The figures of one setting; None where it was not completed."""
    summary = read(run_folder(out, model, policy, rate) / "summary.json")
    if summary is None or not summary.get("complete"):
        return None
    return {"policy": policy, **summary["settings"][0]}


def settings_left(out: Path, model: str, policies: tuple[str, ...]) -> list[tuple[float, str]]:
    """(rate, policy) of each setting that is planned and was not completed; all policies of a rate in turn."""
    plan = read(plan_file(out, model)) or {"rates": []}
    return [(rate, name) for rate in plan["rates"] for name in policies if read_run(out, model, name, rate) is None]


def missing_parts(out: Path, model: str, options: argparse.Namespace) -> list[str]:
    """What is still to be measured of a model, in words; none where all is done."""
    parts = [] if read(table_file(out, model)) else ["its table"]
    parts += [] if read(share_file(out, model)) else ["its step share"]
    if read(plan_file(out, model)) is None:
        return [*parts, "its goodput"]
    left = settings_left(out, model, options.policies)
    return parts + ([f"{len(left)} settings of its goodput"] if left else [])


def write_report(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write `gpu.json`, all or nothing, from the files that are there; returns what it holds."""
    models = {model: model_report(out, model, options) for model in options.models}
    report = {
        "schema": 1,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "complete": not any(entry["missing"] for entry in models.values()),
        "settings": read(out / "settings.json"),
        "machine": {
            "device": device_slug(options.device),
            "gpus": gpu_names(),
            "cpu": cpu_name(),
            "cores": num_cores(),
            **(read(out / "machine.json") or {}),
        },
        "versions": {package: found for package in PACKAGES if (found := installed(package)) is not None},
        "models": models,
    }
    write_atomically(out / "gpu.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def installed(package: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def model_report(out: Path, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """The table, the step share and the goodput of one model."""
    table = read(table_file(out, model))
    plan = read(plan_file(out, model))
    rates = plan["rates"] if plan else []
    runs = [read_run(out, model, policy, rate) for policy in options.policies for rate in rates]
    failures = {path.stem: path.read_text().strip().splitlines()[-1] for path in out.glob(f"failed/{model}/*.txt")}
    return {
        "table": None if table is None else {"file": f"tables/{model}.json", **table_summary(table)},
        "step_share": read(share_file(out, model)),
        "plan": plan,
        "goodput": [{name: run.get(name) for name in FIGURES} for run in runs if run is not None],
        "missing": missing_parts(out, model, options),
        "failed": failures,
    }


def table_summary(table: dict[str, Any]) -> dict[str, Any]:
    """Of each module: seconds alone and in its largest batch, and how well the grid interpolates."""
    fits = table.get("fit", {})
    modules = {}
    for name, grid in table["modules"].items():
        largest = len(grid["batch"]) - 1
        modules[name] = {
            "alone": grid["seconds"][0],
            "largest_batch": grid["batch"][largest],
            "seconds_of_largest": grid["seconds"][largest],
            "worst_relative_error": fits.get(name, {}).get("worst_relative_error"),
        }
    return {key: table.get(key) for key in ("device", "dtype", "source", "spread", "disturbed")} | {"modules": modules}


def print_report(report: dict[str, Any]) -> None:
    """The tables, the step shares and the goodput, for people."""
    modules, shares, runs = [], [], []
    for model, entry in report["models"].items():
        for module, figures in (entry["table"] or {"modules": {}})["modules"].items():
            row = {key: 1000 * figures[key] for key in ("alone", "seconds_of_largest")}
            modules.append({"model": model, "module": module, "batch": figures["largest_batch"], **row})
        shares += [{"model": model, **entry["step_share"]}] if entry["step_share"] else []
        runs += [{"model": model, **run} for run in entry["goodput"]]
    named = Column("model", text("model"))
    if modules:
        columns = [named, Column("module", text("module")), Column("alone ms", number("alone"))]
        columns += [Column("batch", text("batch")), Column("takes ms", number("seconds_of_largest"))]
        print(format_table(modules, columns), end="\n\n")
    if shares:
        columns = [named, Column("batch", text("batch")), Column("outside the forward pass", percent("share"))]
        print(format_table(shares, columns), end="\n\n")
    if runs:
        columns = [named, Column("policy", text("policy")), Column("rate", number("rate", 4))]
        columns += [Column("×cap", number("load", 2)), Column("images/s on time", number("request_goodput", 4))]
        columns += [Column("SLO met", percent("slo_attainment")), Column("rejected", percent("reject_rate"))]
        print(format_table(runs, columns), end="\n\n")
