"""The frame of experiment programs, with a kind of model that is all made of fakes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from exp_fakes import FakeBench

from exp.harness.options import Options, add_common_arguments, common_options, num_requests
from exp.harness.program import Kind, Scope, main
from exp.harness.runner import Bench
from exp.harness.settings import default_rates, sweep
from neustream import LatencyTable, save_table
from neustream.cli.arguments import BadInput, RunFailed
from neustream.latency import BatchLatency


@dataclass(frozen=True, slots=True)
class NanoOptions(Options):
    colour: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common_arguments(parser, model="nano", policy="fake")
    parser.add_argument("--colour", default="red")


def options(given: argparse.Namespace) -> NanoOptions:
    if given.colour == "none":
        raise BadInput("--colour must be a colour, got none")
    return NanoOptions(common_options(given, device="cpu", model="nano"), given.colour)


def scope(options: NanoOptions, table: LatencyTable) -> Scope:
    common = options.common
    rates = common.rate or default_rates(1 / table["work"].alone(1))
    settings = sweep({"rate": rates, "cv": common.cv}, repeats=common.num_dup, seed=common.seed)
    return Scope(settings, num_requests(common, rates, 0.1, 4), 100.0)


def load(options: NanoOptions, table: LatencyTable, path: Path, scope: Scope) -> Bench:
    return FakeBench(scope.num_requests)


KIND = Kind(
    name="nano",
    description="Serve nothing.",
    epilog="",
    unit="token",
    best_by="token_goodput",
    packages=("numpy",),
    add_arguments=add_arguments,
    options=options,
    modules=lambda options: ("work",),
    default_dtype=lambda options: "float32",
    scope=scope,
    header=lambda options: {"colour": options.colour},
    load=load,
)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """A table, and where the run goes."""
    table = LatencyTable("nano", "desk", {"work": BatchLatency((1, 2), (0.01, 0.02))}, {"dtype": "bfloat16"})
    save_table(table, tmp_path / "nano.json")
    return ["--table", str(tmp_path / "nano.json"), "--out", str(tmp_path / "run"), "--rate", "200,400"]


def failing(error: Exception) -> Callable[..., Bench]:
    def load(*_: object) -> Bench:
        raise error

    return load


def test_a_kind_brings_its_flags_settings_and_driver_and_the_frame_does_the_rest(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(KIND, [*flags, "--colour", "blue", "--requests", "6", "--num-dup", "2"]) == 0
    summary: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    said = {key: summary[key] for key in ("kind", "model", "policy", "colour", "dtype", "requests", "capacity")}
    assert said == {
        "kind": "nano", "model": "nano", "policy": "fake", "colour": "blue", "dtype": "bfloat16", "requests": 6,
        "capacity": 100.0,
    }  # fmt: skip
    assert [(row["rate"], row["seed"], row["requests"]) for row in summary["settings"]] == [
        (200.0, 0, 6), (200.0, 1, 6), (400.0, 0, 6), (400.0, 1, 6),
    ]  # fmt: skip
    assert summary["complete"]
    assert "numpy" in summary["versions"]
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("model nano, policy fake, device ")
    assert "token goodput/s" in out[1]


def test_a_model_that_cannot_be_loaded_gives_one_line_and_keeps_its_trace(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(replace(KIND, load=failing(OSError("no memory"))), flags) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line == f"exp.nano: cannot load nano: OSError: no memory; see {tmp_path / 'run' / 'error.txt'}"
    assert "OSError: no memory" in (tmp_path / "run" / "error.txt").read_text()
    assert main(replace(KIND, load=failing(RunFailed("not built"))), [*flags[:2], "--out", str(tmp_path / "b")]) == 1
    assert not (tmp_path / "b").exists(), "nothing was measured, and there is no trace to keep"


@pytest.mark.parametrize(
    ("changed", "extra", "message"),
    [
        ({}, ["--colour", "none"], "--colour must be a colour, got none"),
        ({}, ["--cv", "1", "--burstiness", "1"], "not both"),
        ({}, ["--dtype", "float32"], "dtype is bfloat16, but --dtype is float32"),
        ({"modules": lambda options: ("work", "play")}, [], "has modules work; nano needs play"),
        ({"load": failing(BadInput("weights: too heavy"))}, [], "weights: too heavy"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_and_leaves_nothing(
    changed: dict[str, Any],
    extra: list[str],
    message: str,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(replace(KIND, **changed), [*flags, *extra])
    assert stopped.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("exp.nano: ")
    assert message in line
    assert not (tmp_path / "run").exists()
