"""Studies from the folders of real runs (`runs/<name>/`): what was swept there becomes the axes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exp.compare import read_summary
from exp.figures.study import Batches, Row, Study, bin_batches
from neustream.cli.arguments import BadInput

FIGURES = ("request_goodput", "token_goodput", "slo_attainment", "seconds", "requests")
MAIN_MODULES = ("decode", "denoise")


def read_studies(folders: Sequence[str]) -> list[Study]:
    """One study for each model and device among the runs. Raises BadInput naming the run that cannot be read."""
    groups: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for folder in folders:
        summary = read_summary(folder)
        missing = [key for key in ("model", "policy", "device", "axes", "settings") if key not in summary]
        if missing or not summary["settings"]:
            raise BadInput(f"{folder}: its summary has no {', '.join(missing) or 'finished setting'}")
        groups[summary["device"], summary["model"]].append((folder, summary))
    return [_study(runs) for runs in groups.values()]


def _study(runs: Sequence[tuple[str, dict[str, Any]]]) -> Study:
    first = runs[0][1]
    axes: list[str] = first["axes"]
    for folder, summary in runs:
        if summary["axes"] != axes:
            raise BadInput(f"{folder} swept {', '.join(summary['axes'])}; {runs[0][0]} swept {', '.join(axes)}")
    rows = [{**row, "policy": summary["policy"]} for _, summary in runs for row in summary["settings"]]
    panels = {axis: _panel(rows, axes, axis) for axis in axes}
    swept = {axis: panel for axis, panel in panels.items() if len({row[axis] for row in panel}) > 1}
    panels = swept or {axes[0]: panels[axes[0]]}
    batches, where = _batches(runs, axes)
    return Study(
        first["model"],
        first["device"],
        _is_llm(first),
        f"measured on {first['device']}, times taken at the {first.get('taken_at', 'engine')}",
        panels,
        batches,
        where,
        first.get("capacity"),
    )


def _is_llm(summary: Mapping[str, Any]) -> bool:
    return summary.get("kind", "llm") == "llm" and "slo_scale" not in summary["axes"]


def _panel(rows: Sequence[Row], axes: Sequence[str], axis: str) -> list[Row]:
    """Of the runs that agree in all other axes the largest group, repeats averaged, by rising value."""
    groups: dict[tuple[Any, ...], dict[tuple[str, float], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        others = tuple(row[other] for other in axes if other != axis)
        groups[others][row["policy"], row[axis]].append(row)
    largest = max(groups.values(), key=lambda group: (len({value for _, value in group}), len(group)))
    order = sorted(largest, key=lambda key: key[1])
    return [_average(largest[key]) for key in order]


def _average(repeats: Sequence[Row]) -> Row:
    means = {key: float(np.mean([row[key] for row in repeats])) for key in FIGURES}
    return {**repeats[0], **means}


def _batches(runs: Sequence[tuple[str, dict[str, Any]]], axes: Sequence[str]) -> tuple[list[Batches], str]:
    """Batch sizes of up to two policies, at the setting that they share and that has the highest rate."""
    at: dict[tuple[Any, ...], dict[str, tuple[str, int]]] = defaultdict(dict)
    for folder, summary in runs:
        for index, row in enumerate(summary["settings"]):
            at[tuple(row[axis] for axis in axes)].setdefault(summary["policy"], (folder, index))
    key = max(at, key=lambda values: (len(at[values]), values))
    steps = {policy: _read_steps(*where) for policy, where in list(at[key].items())[:2]}
    end = max((step[1] for run in steps.values() for step in run), default=0.0)
    if end <= 0.0:
        return [], ""
    words = ", ".join(f"{axis} {value:g}" for axis, value in zip(axes, key, strict=True))
    return [bin_batches(policy, run, end) for policy, run in steps.items()], words


def _read_steps(folder: str, setting: int) -> list[tuple[float, float, int]]:
    """`(start, end, batch size)` of the main module's steps of one setting; none where the run kept no steps."""
    path = Path(folder) / "steps.jsonl"
    if not path.exists():
        path = Path("runs") / folder / "steps.jsonl"
    if not path.exists():
        return []
    steps = []
    with path.open() as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                if record["setting"] == setting and record["module"] in MAIN_MODULES:
                    begun = float(record["time"])
                    steps.append((begun, begun + float(record["seconds"]), int(record["batch_size"])))
            except (ValueError, KeyError, TypeError) as error:
                raise BadInput(f"{path}, line {number}: is no step of a run ({error})") from error
    return steps
