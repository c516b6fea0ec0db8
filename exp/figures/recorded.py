"""Studies from the folders of real runs (`runs/<name>/`): what was swept there becomes the axes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from exp.figures.study import BatchSizes, Study, bin_batches, main_steps
from exp.harness.comparable import check_comparable
from exp.harness.frames import rows_of
from neusim.validating.run_folder import RunFolder, open_run
from neustream.cli.arguments import BadInput

FIGURES = ("request_goodput", "token_goodput", "slo_attainment", "seconds", "requests")


def read_studies(folders: Sequence[str], *, force: bool = False) -> list[Study]:
    """One study for each model and device among the runs.

    Raises BadInput naming a run that cannot be read, or, unless `force`, two runs of one study that differ in more
    than their policy and their settings.
    """
    groups: dict[tuple[str, str], list[RunFolder]] = defaultdict(list)
    for folder in folders:
        run = open_run(folder)
        run.need("device", "axes")
        groups[run.summary["device"], run.summary["model"]].append(run)
    return [_study(runs, force) for runs in groups.values()]


def _study(runs: Sequence[RunFolder], force: bool) -> Study:
    first, axes = runs[0].summary, runs[0].axes
    for run in runs:
        if run.axes != axes:
            raise BadInput(f"{run.path} swept {', '.join(run.axes)}; {runs[0].path} swept {', '.join(axes)}")
    check_comparable([(str(run.path), run.summary) for run in runs], force=force)
    rows = pd.DataFrame([{**row, "policy": run.summary["policy"]} for run in runs for row in run.settings])
    panels = {axis: _panel(rows, axes, axis) for axis in axes}
    swept = {axis: panel for axis, panel in panels.items() if panel[axis].nunique() > 1}
    panels = swept or {axes[0]: panels[axes[0]]}
    batches, where = _batches(runs, axes)
    return Study(
        first["model"],
        first["device"],
        _is_llm(first),
        f"measured on {first['device']}, times taken at the {first.get('taken_at', 'engine')}",
        {axis: rows_of(panel) for axis, panel in panels.items()},
        batches,
        where,
        first.get("capacity"),
    )


def _is_llm(summary: Mapping[str, Any]) -> bool:
    return summary.get("kind", "llm") == "llm" and "slo_scale" not in summary["axes"]


def _panel(rows: pd.DataFrame, axes: Sequence[str], axis: str) -> pd.DataFrame:
    """Of the rows that agree in all other axes the largest group, repeats averaged, by rising value."""
    others = [other for other in axes if other != axis]
    groups = [group for _, group in rows.groupby(others, sort=False)] if others else [rows]
    largest = max(groups, key=lambda group: (group[axis].nunique(), len(group[["policy", axis]].drop_duplicates())))
    kept = {name: "mean" if name in FIGURES else "first" for name in rows.columns if name not in ("policy", axis)}
    return largest.groupby(["policy", axis], sort=False, as_index=False).agg(kept).sort_values(axis, kind="stable")


def _batches(runs: Sequence[RunFolder], axes: Sequence[str]) -> tuple[list[BatchSizes], str]:
    """Batch sizes of up to two policies, at the setting that they share and that has the highest rate."""
    at: dict[tuple[Any, ...], dict[str, tuple[RunFolder, int]]] = defaultdict(dict)
    for run in runs:
        for index, row in enumerate(run.settings):
            at[tuple(row[axis] for axis in axes)].setdefault(run.summary["policy"], (run, index))
    key = max(at, key=lambda values: (len(at[values]), values))
    steps = {policy: main_steps(run.steps()[index]) for policy, (run, index) in list(at[key].items())[:2]}
    end = max((step[1] for run in steps.values() for step in run), default=0.0)
    if end <= 0.0:
        return [], ""
    words = ", ".join(f"{axis} {value:g}" for axis, value in zip(axes, key, strict=True))
    return [bin_batches(policy, run, end) for policy, run in steps.items()], words
