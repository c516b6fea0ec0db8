"""Figures for people: an aligned table, and the step_prediction logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
"""One setting of a summary."""


class Column(NamedTuple):
    """A column of the printed table: its heading, and how it shows a setting."""

    heading: str
    text: Callable[[Row], str]


def number(key: str, digits: int = 3) -> Callable[[Row], str]:
    """Shows a figure with so many significant digits; `-` where there is none."""

    def show(row: Row) -> str:
        value = row.get(key)
        return "-" if value is None else f"{value:#.{digits}g}".rstrip(".")

    return show


def plain(key: str) -> Callable[[Row], str]:
    """Shows a number as short as it goes."""
    return lambda row: f"{row[key]:.4g}"


def percent(key: str, digits: int = 1) -> Callable[[Row], str]:
    """Shows a share as a percentage."""
    return lambda row: "-" if row.get(key) is None else f"{100 * row[key]:.{digits}f}%"


def milliseconds(key: str) -> Callable[[Row], str]:
    """Shows `p50/p99` of a distribution in seconds as milliseconds."""

    def show(row: Row) -> str:
        values = [row[key][name] for name in ("p50", "p99")]
        return "/".join("-" if value is None else f"{1000 * value:.0f}" for value in values)

    return show


def goodput_columns(axes: Sequence[str], unit: str = "token") -> list[Column]:
    """The columns of docs/metrics.md after those of the sweep's axes; `unit` is what a request delivers."""
    tokens = [
        Column(f"{unit} goodput/s", number("token_goodput", 4)),
        Column(f"{unit}s/s", number("throughput", 4)),
    ]
    spread = [Column("TTFT ms p50/p99", milliseconds("ttft")), Column("TPOT ms p50/p99", milliseconds("tpot"))]
    return [
        *(Column(axis, plain(axis)) for axis in axes),
        Column("×cap", number("load", 2)),
        Column("seed", lambda row: str(row["seed"])),
        *(tokens if unit == "token" else []),
        Column("req goodput/s", number("request_goodput")),
        Column("SLO met", percent("slo_attainment")),
        Column("rejected", percent("reject_rate")),
        *(spread if unit == "token" else []),
        Column("e2e ms p50/p99", milliseconds("e2el")),
        Column("late ms p50/p99", milliseconds("lateness")),
        Column("deciding", percent("schedule_share", 2)),
        *([Column("scheduler", percent("scheduler_share", 2))] if unit == "token" else []),
        Column("", lambda row: "" if row.get("complete", True) else "incomplete"),
    ]


def format_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """An aligned table with a heading; a column without anything in it is left out."""
    cells = [[column.text(row) for column in columns] for row in rows]
    lines = [[column.heading for column in columns], *cells]
    shown = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(line[i].rjust(widths[i]) for i in shown).rstrip() for line in lines)


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
