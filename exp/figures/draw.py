"""Draws studies: PNG and PDF, colours that colour-blind readers can tell apart, every line with its own marker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from exp.figures.study import Study
from neustream.cli.report import Row

# Okabe and Ito, "Color Universal Design" (2008).
STYLES = {
    "slack": ("#D55E00", "o", "-"),
    "neustream": ("#0072B2", "s", "-"),
    "clockwork": ("#009E73", "^", "--"),
    "chunked": ("#CC79A7", "D", "--"),
    "fcfs": ("#E69F00", "v", "-."),
}
OTHERS = (("#56B4E9", "P", ":"), ("#999999", "X", ":"), ("#F0E442", "*", ":"))
BOUND = "#000000"
OFFERED = "#888888"
NAMES = {"fcfs": "fcfs (vLLM's default)", "vllm": "stock vLLM", "chunked": "chunked prefill"}
AXES = {
    "rate": "request rate (requests/s)",
    "cv": "spread of arrivals (coefficient of variation)",
    "slo_scale": "SLO (× time alone)",
    "pslo": "SLO of the first token (× prefill alone)",
    "dslo": "SLO of later tokens (× decode step alone)",
}
REQUESTS = "requests within SLO per second"
TOKENS = "tokens on time per second"
LETTER, HANDLE = 0.075, 0.6
"""Inches that a letter of the legend takes, and its line with the space around it."""
SIZE = {"font.size": 9, "axes.titlesize": 10, "legend.fontsize": 9, "axes.grid": True, "grid.alpha": 0.3}


def style_of(policy: str) -> tuple[str, str, str]:
    """Colour, marker and line style of a policy; always the same."""
    known = "fcfs" if policy == "vllm" else policy
    return STYLES.get(known) or OTHERS[sum(map(ord, policy)) % len(OTHERS)]


def draw_goodput(study: Study) -> Figure:
    """Goodput along every axis of the study: a column for each axis; language models have a second row, of tokens."""
    kinds: list[tuple[str, str]] = [("request_goodput", REQUESTS)]
    if study.is_llm:
        kinds.append(("token_goodput", TOKENS))
    columns = len(study.panels)
    with plt.rc_context(SIZE):
        size = (max(3.4 * columns, 6.0), 3.0 * len(kinds) + 1.2)
        figure, grid = plt.subplots(len(kinds), columns, figsize=size, squeeze=False, sharey="row")
        for i, (key, label) in enumerate(kinds):
            for j, (axis, rows) in enumerate(study.panels.items()):
                _draw_panel(grid[i][j], study, axis, rows, key)
            grid[i][0].set_ylabel(label)
        for j, axis in enumerate(study.panels):
            grid[-1][j].set_xlabel(AXES.get(axis, axis))
        _finish(figure, study, f"{study.model} on {study.device}: goodput", _legend(study))
    return figure


def _draw_panel(axes: Axes, study: Study, axis: str, rows: Sequence[Row], key: str) -> None:
    for policy in study.policies:
        mine = [(row[axis], row[key]) for row in rows if row["policy"] == policy]
        colour, marker, line = style_of(policy)
        axes.plot(*zip(*sorted(mine), strict=True) if mine else ((), ()), color=colour, marker=marker, ls=line, ms=5)
    if key == "request_goodput":
        bounds = _highest(rows, axis, "bound")
        if bounds:
            axes.plot(*zip(*bounds, strict=True), color=BOUND, ls=(0, (1, 1.5)), lw=1.5)
        axes.plot(*zip(*_highest(rows, axis, "requests"), strict=True), color=OFFERED, lw=0.8)
    if axis == "rate" and study.capacity:
        axes.axvline(study.capacity, color=OFFERED, lw=1.0, ls="--")
    axes.set_title(_usual(rows, axis), fontsize=8)


def _highest(rows: Sequence[Row], axis: str, count: str) -> list[tuple[float, float]]:
    """`count` per second along the axis, over the shortest of the policies' runs, so that no goodput can exceed it."""
    points: dict[float, float] = {}
    for row in rows:
        if row.get(count) is not None and row["seconds"]:
            points[row[axis]] = max(points.get(row[axis], 0.0), row[count] / row["seconds"])
    return sorted(points.items())


def _usual(rows: Sequence[Row], axis: str) -> str:
    """What all runs of a panel have in common, in words."""
    units = {"rate": "{:g}/s", "cv": "cv {:g}", "slo_scale": "SLO {:g}×"}
    units |= {"pslo": "first token {:g}×", "dslo": "later {:g}×"}
    return ", ".join(text.format(rows[0][key]) for key, text in units.items() if key != axis and key in rows[0])


def _legend(study: Study) -> list[Line2D]:
    handles = []
    for policy in study.policies:
        colour, marker, line = style_of(policy)
        handles.append(Line2D([], [], color=colour, marker=marker, ls=line, ms=5, label=NAMES.get(policy, policy)))
    rows = [row for panel in study.panels.values() for row in panel]
    if any(row.get("bound") is not None for row in rows):
        handles.append(Line2D([], [], color=BOUND, ls=(0, (1, 1.5)), lw=1.5, label="bound: no schedule can exceed it"))
    handles.append(Line2D([], [], color=OFFERED, lw=0.8, label="offered"))
    if study.capacity and "rate" in study.panels:
        handles.append(Line2D([], [], color=OFFERED, lw=1.0, ls="--", label="capacity, by the table"))
    return handles


def draw_batches(study: Study) -> Figure:
    """Batch size over time, one panel below the other for each policy: mean and range within short intervals."""
    with plt.rc_context(SIZE):
        count = len(study.batches)
        figure, grid = plt.subplots(count, 1, figsize=(8.0, 1.9 * count + 1.2), squeeze=False, sharex=True, sharey=True)
        for row, batches in zip(grid, study.batches, strict=True):
            colour, _, _ = style_of(batches.policy)
            times = batches.seconds
            row[0].fill_between(times, batches.least, batches.most, step="mid", color=colour, alpha=0.25, lw=0)
            row[0].step(times, batches.mean, where="mid", color=colour, lw=1.3)
            row[0].set_title(NAMES.get(batches.policy, batches.policy), loc="left")
            row[0].set_ylabel("requests per step")
        grid[-1][0].set_xlabel("time since the first arrival (s)")
        width = study.batches[0].seconds[1] - study.batches[0].seconds[0]
        handles: list[Any] = [
            Line2D([], [], color="#444444", lw=1.3, label=f"mean over {width:.2g} s"),
            Patch(color="#444444", alpha=0.25, lw=0, label="least and most"),
        ]
        what = "decode steps" if study.is_llm else "denoising steps"
        title = f"{study.model} on {study.device}: batch size of {what} over time ({study.batches_at})"
        _finish(figure, study, title, handles)
    return figure


def _finish(figure: Figure, study: Study, title: str, handles: Sequence[Any]) -> None:
    figure.suptitle(title, fontsize=11)
    width, height = figure.get_size_inches()
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = min(len(handles), max(int(width / (LETTER * longest + HANDLE)), 1))
    lines = -(-len(handles) // columns)
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
    figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False,
                  bbox_to_anchor=(0.5, 0.18 / height))  # fmt: skip
    figure.text(0.5, 0.06 / height, study.origin, ha="center", fontsize=7.5, color="#555555")
    figure.tight_layout(rect=(0, (0.3 + 0.2 * lines) / height, 1, 1))


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path`.png and `path`.pdf; returns both."""
    written = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "pdf")]
    for file in written:
        figure.savefig(file, dpi=150)
    plt.close(figure)
    return written


def draw_all(study: Study, out: Path) -> Iterable[Path]:
    """Every figure of a study."""
    drawings: list[tuple[str, Callable[[Study], Figure]]] = [("goodput", draw_goodput)]
    if study.batches:
        drawings.append(("batches", draw_batches))
    for name, draw in drawings:
        yield from save(draw(study), out / f"{name}-{study.name}")
