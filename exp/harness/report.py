"""What an experiment prints beside the figures that every command prints, and the lines of its logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neustream.cli import report
from neustream.cli.report import Column, Row, axis_columns, number, percent, text

DISTURBED = 0.15
"""From this `waited_share` on, the user is told. An idle machine shows 0.03 to 0.07."""
SLOW = 1.15
"""From this `slowdown` on, the user is told."""
LAGGING = 0.005
"""From this `client_lag` in seconds on, the user is told."""


def goodput_columns(axes: Sequence[str], unit: str = "token") -> list[Column]:
    """The axes of the sweep, the figures of docs/metrics.md, and what deciding cost; `unit` is what is delivered."""
    has_tokens = unit == "token"
    return [
        *axis_columns(axes),
        Column("×cap", number("load", 2)),
        Column("seed", text("seed")),
        *report.goodput_columns(has_tokens),
        Column("deciding", percent("decision_share", 2)),
        *([Column("scheduler", percent("scheduler_share", 2))] if has_tokens else []),
        Column("", lambda row: "" if row.get("complete", True) else "incomplete"),
    ]


def heading(header: Mapping[str, Any]) -> str:
    """One line over the table: what ran on what."""
    keys = ("model", "policy", "device", "dtype", "table_origin")
    line = ", ".join(f"{key.replace('_', ' ')} {header[key]}" for key in keys if header.get(key))
    return line + (f", capacity {header['capacity']:.4g} req/s" if header.get("capacity") else "")


def disturbances(rows: Sequence[Row]) -> list[str]:
    """Lines that say why the figures may not be those of this machine at rest; none if nothing was amiss."""
    notes = []
    waited = max(row["waited_share"] for row in rows)
    if waited > DISTURBED:
        notes.append(f"other work disturbed this run: its threads waited {waited:.2f} s per second for a core")
    slowdown = max(row["slowdown"] or 0.0 for row in rows)
    if slowdown > SLOW:
        notes.append(f"steps took up to {slowdown:.2f} × what the latency table says, and the SLOs are the table's")
    lag = max(row["client_lag"] for row in rows)
    if lag > LAGGING:
        notes.append(f"the client sent requests up to {1000 * lag:.0f} ms after their time; they count from then on")
    return notes


def log_line(row: Row, axes: Sequence[str], fixed: Mapping[str, Any]) -> str:
    """One setting as `key=value` pairs: what was run, then what came of it."""
    keys = [*axes, "repeat", "seed", "token_goodput", "request_goodput", "slo_attainment", "reject_rate"]
    keys += ["throughput", "schedule_share", "prediction_error"]
    figures = {key: row.get(key) for key in keys}
    shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in figures.items()}
    return " ".join(f"{key}={value}" for key, value in {**fixed, **shown}.items())


def best_of_repeats(rows: Sequence[Row], axes: Sequence[str], by: str) -> list[Row]:
    """Of each setting's repeats the one with the highest `by`, in the order of the settings."""
    best: dict[tuple[float, ...], Row] = {}
    for row in rows:
        key = tuple(row[axis] for axis in axes)
        if key not in best or row[by] > best[key][by]:
            best[key] = row
    return list(best.values())
