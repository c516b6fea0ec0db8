"""Studies from the folders of real runs (`runs/<name>/`): what was swept there becomes the axes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exp.figures.study import Batches, Row, Study, bin_batches
from neusim.validating.run_folder import RunFolder, open_run
from neustream.cli.arguments import BadInput

FIGURES = ("request_goodput", "token_goodput", "slo_attainment", "seconds", "requests")
MAIN_MODULES = ("decode", "denoise")


def read_studies(folders: Sequence[str]) -> list[Study]:
    """One study for each model and device among the runs. Raises BadInput naming the run that cannot be read."""
    groups: dict[tuple[str, str], list[RunFolder]] = defaultdict(list)
    for folder in folders:
        run = open_run(folder)
        run.need("device", "axes")
        groups[run.summary["device"], run.summary["model"]].append(run)
    return [_study(runs) for runs in groups.values()]


def _study(runs: Sequence[RunFolder]) -> Study:
    first, axes = runs[0].summary, runs[0].axes
    for run in runs:
        if run.axes != axes:
            raise BadInput(f"{run.path} swept {', '.join(run.axes)}; {runs[0].path} swept {', '.join(axes)}")
    rows = [{**row, "policy": run.summary["policy"]} for run in runs for row in run.settings]
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


def _batches(runs: Sequence[RunFolder], axes: Sequence[str]) -> tuple[list[Batches], str]:
    """Batch sizes of up to two policies, at the setting that they share and that has the highest rate."""
    at: dict[tuple[Any, ...], dict[str, tuple[RunFolder, int]]] = defaultdict(dict)
    for run in runs:
        for index, row in enumerate(run.settings):
            at[tuple(row[axis] for axis in axes)].setdefault(run.summary["policy"], (run, index))
    key = max(at, key=lambda values: (len(at[values]), values))
    steps = {policy: _main_steps(*where) for policy, where in list(at[key].items())[:2]}
    end = max((step[1] for run in steps.values() for step in run), default=0.0)
    if end <= 0.0:
        return [], ""
    words = ", ".join(f"{axis} {value:g}" for axis, value in zip(axes, key, strict=True))
    return [bin_batches(policy, run, end) for policy, run in steps.items()], words


def _main_steps(run: RunFolder, setting: int) -> list[tuple[float, float, int]]:
    """`(start, end, batch size)` of the main module's steps of one setting; none where the run kept no steps."""
    steps = run.steps()[setting]
    return [(step.time, step.time + step.seconds, step.batch_size) for step in steps if step.module in MAIN_MODULES]
