"""Rows of a comparison for people and for files: shares by load, and a CSV with one line per cell and policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from neusim.evaluating.intervals import mean_interval, paired_difference, paired_ratio
from neustream.cli.report import Column, Row, format_table, text

GROUP = ("device", "model", "trace", "slo")
FLAT = (
    *("device", "model", "trace", "window", "slo", "load", "rate", "slowness", "jitter", "seed", "policy"),
    *("requests", "good", "good_share", "attained_share", "token_share", "units_on_time", "reject_rate"),
    *("met", "late", "rejected", "failed", "seconds", "num_steps", "spared", "table_origin"),
)


def flat(row: Row) -> dict[str, Any]:
    """A row with plain values only: `good CLASS`, `attained CLASS` of each class and `good 1` … `good 10` by length."""
    result = {key: row[key] for key in FLAT}
    for name, figures in row.get("classes", {}).items():
        result[f"good {name}"] = figures["slo_attainment"]
        result[f"attained {name}"] = figures["mean_attainment"]
    for i, part in enumerate(row.get("by_size", []), start=1):
        result[f"good {i}"] = part["good"] / part["requests"]
    return result


def to_csv(rows: Sequence[Row]) -> str:
    """One line per row under a heading."""
    return str(pd.DataFrame([flat(row) for row in rows]).to_csv(index=False))


def shares_by_load(rows: Sequence[Row], figure: str) -> str:
    """For each device, model, trace and SLO kind a line per policy: the figure in per cent by load.

    It is the mean over windows, with half the 95 % interval behind ± where there are several.
    """
    frame = pd.DataFrame([{key: row[key] for key in (*GROUP, "load", "policy", figure)} for row in rows])
    loads = sorted(set(frame["load"]))
    lines = []
    for names, part in frame.groupby([*GROUP, "policy"], sort=False):
        line: dict[str, Any] = dict(zip([*GROUP, "policy"], names, strict=True))
        for load, values in part.groupby("load"):
            line[f"{load:g}"] = _shown([100 * value for value in values[figure]])
        lines.append(line)
    columns = [Column(name, text(name)) for name in (*GROUP, "policy")]
    return format_table(lines, [*columns, *(Column(f"{load:g}", text(f"{load:g}")) for load in loads)])


def against_peers(rows: Sequence[Row], ours: str, figure: str) -> str:
    """For each device, model, trace, SLO kind and load: the best other policy, and ours over it, paired by window.

    The best is that with the largest mean. The difference is in per cent of what came, with Student's t interval; the
    ratio has a bootstrap interval.
    """
    keys = [*GROUP, "load"]
    frame = pd.DataFrame([{key: row[key] for key in (*keys, "window", "seed", "policy", figure)} for row in rows])
    lines = []
    for names, part in frame.groupby(keys, sort=False):
        cells = part.pivot_table(index=["window", "seed"], columns="policy", values=figure)
        peers = cells.drop(columns=ours)
        best = str(peers.mean().idxmax())
        mine, theirs = cells[ours].tolist(), cells[best].tolist()
        ratio = paired_ratio(mine, theirs)
        points = paired_difference([100 * value for value in mine], [100 * value for value in theirs])
        lines.append(
            {
                **dict(zip(keys, names, strict=True)),
                "windows": len(mine),
                ours: f"{100 * cells[ours].mean():.1f}",
                "best other": best,
                "it has": f"{100 * cells[best].mean():.1f}",
                "difference": f"{points.mean:+.1f} ({points.low:+.1f} … {points.high:+.1f})",
                "ratio": f"{ratio.mean:.3f} ({ratio.low:.3f} … {ratio.high:.3f})",
            }
        )
    headings = (*keys, "windows", ours, "best other", "it has", "difference", "ratio")
    return format_table(lines, [Column(heading, text(heading)) for heading in headings])


def highest_loads(rows: Sequence[Row], figure: str, share: float) -> str:
    """For each device, model, trace and SLO kind, and each policy, the highest load at which its mean is `share`.

    Between two loads that were run the mean is taken to be straight. `<` and `>`: below the lowest of them, or beyond
    the highest.
    """
    frame = pd.DataFrame([{key: row[key] for key in (*GROUP, "load", "policy", figure)} for row in rows])
    policies = list(dict.fromkeys(frame["policy"]))
    lines = []
    for names, part in frame.groupby([*GROUP], sort=False):
        line: dict[str, Any] = dict(zip(GROUP, names, strict=True))
        for policy, values in part.groupby("policy"):
            means = values.groupby("load")[figure].mean()
            line[str(policy)] = _crossing(list(means.index), list(means), share)
        lines.append(line)
    return format_table(lines, [Column(name, text(name)) for name in (*GROUP, *policies)])


def _crossing(loads: Sequence[float], means: Sequence[float], share: float) -> str:
    """Where the means fall through `share` for the last time; loads rise."""
    above = [i for i, mean in enumerate(means) if mean >= share]
    if not above:
        return f"<{loads[0]:g}"
    last = above[-1]
    if last + 1 == len(loads):
        return f">{loads[-1]:g}"
    fallen = (means[last] - share) / (means[last] - means[last + 1])
    return f"{loads[last] + fallen * (loads[last + 1] - loads[last]):.2f}"


def _shown(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    interval = mean_interval(values)
    return f"{interval.mean:.1f} ±{interval.half:.1f}"
