"""Rows of a comparison of workflow rules for people: in time by setting, ratios with intervals, tokens of each node."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from neusim.evaluating.intervals import paired_ratio
from neusim.evaluating.workflow_grid import Row
from neustream.cli.report import Column, format_table, text

AXES = ("rate", "cv", "slo_scale")


def by_setting(rows: Sequence[Row], figure: str) -> str:
    """A line per rule: the mean over the seeds of `figure` in each setting, and their sum."""
    frame = _with_setting(rows)
    settings = list(dict.fromkeys(frame["setting"]))
    lines = []
    for rule, part in frame.groupby("rule", sort=False):
        means = part.groupby("setting")[figure].mean()
        line = {setting: f"{means[setting]:.1f}" for setting in settings}
        lines.append({"rule": rule, **line, "sum": f"{means.sum():.1f}"})
    return _table(lines, ("rule", *settings, "sum"))


def ratios(rows: Sequence[Row], ours: str, figure: str = "good") -> str:
    """Ours over each other rule: summed over the settings, with a bootstrap interval over the seeds; by setting."""
    frame = _with_setting(rows)
    cells = frame.pivot_table(index=["setting", "seed"], columns="rule", values=figure, sort=False)
    lines = []
    for rule in cells.columns:
        if rule == ours:
            continue
        sums = cells.groupby("seed")[[ours, rule]].sum()
        whole = paired_ratio(sums[ours].tolist(), sums[rule].tolist())
        settings = cells.groupby("setting", sort=False)[[ours, rule]].sum()
        parts = settings[ours] / settings[rule]
        lines.append(
            {
                "ours over": rule,
                "summed": f"{whole.mean:.3f} ({whole.low:.3f} … {whole.high:.3f})",
                "seeds": str(whole.count),
                "least": f"{parts.min():.3f} at {parts.idxmin()}",
                **{str(setting): f"{ratio:.2f}" for setting, ratio in parts.items()},
            }
        )
    settings_shown = list(dict.fromkeys(frame["setting"]))
    return _table(lines, ("ours over", "summed", "seeds", "least", *settings_shown))


def what_binds(rows: Sequence[Row]) -> str:
    """A line per rule: turned away, work lost and tokens in time per second of each node, as means; what binds."""
    frame = pd.DataFrame(rows)
    tokens = [name for name in frame.columns if name.startswith("tokens ")]
    lines = []
    for rule, part in frame.groupby("rule", sort=False):
        pools = part["binds"].str.split().str[0].value_counts()
        lines.append(
            {
                "rule": rule,
                "turned away": f"{part['turned_away'].mean():.1f}",
                "work lost": f"{100 * part['work_lost'].mean():.1f}%",
                **{name: f"{part[name].mean():.0f}" for name in tokens if part[name].notna().any()},
                "longest wait at": ", ".join(f"{pool} {count}" for pool, count in pools.items()),
            }
        )
    return _table(lines, ("rule", "turned away", "work lost", *tokens, "longest wait at"))


def to_csv(rows: Sequence[Row]) -> str:
    """One line per run under a heading."""
    return str(pd.DataFrame(rows).to_csv(index=False))


def _with_setting(rows: Sequence[Row]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    frame["setting"] = ["/".join(f"{row[axis]:g}" for axis in AXES) for row in rows]
    return frame


def _table(lines: Sequence[Row], headings: Sequence[str]) -> str:
    return format_table(lines, [Column(heading, text(heading)) for heading in headings])
