"""Figures for people: aligned tables, and how each kind of figure is shown.

`goodput_columns` is the one list of the figures of docs/metrics.md that commands print: a new one is added there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
"""One run or setting: the values of its axes, and its figures."""


class Column(NamedTuple):
    """A column of a printed table: its heading, and how it shows a row."""

    heading: str
    text: Callable[[Row], str]


def text(key: str) -> Callable[[Row], str]:
    """Shows a value as it is; nothing where there is none."""
    return lambda row: "" if row.get(key) is None else str(row[key])


def number(key: str, digits: int = 3) -> Callable[[Row], str]:
    """Shows a figure with so many significant digits; `-` where there is none."""

    def show(row: Row) -> str:
        value = row.get(key)
        return "-" if value is None else f"{value:#.{digits}g}".rstrip(".")

    return show


def plain(key: str, digits: int = 4) -> Callable[[Row], str]:
    """Shows a number as short as it goes, with at most so many digits; nothing where there is none."""
    return lambda row: "" if row.get(key) is None else f"{row[key]:.{digits}g}"


def percent(key: str, digits: int = 1) -> Callable[[Row], str]:
    """Shows a share as a percentage; `-` where there is none."""
    return lambda row: "-" if row.get(key) is None else f"{100 * row[key]:.{digits}f}%"


def spread(key: str, unit: str = "ms") -> Callable[[Row], str]:
    """Shows `p50/p99` of a distribution in seconds, as whole milliseconds or as seconds of three digits."""

    def show(row: Row) -> str:
        values = [row[key][name] for name in ("p50", "p99")]
        return "/".join("-" if value is None else in_unit(value, unit) for value in values)

    return show


def in_unit(seconds: float, unit: str) -> str:
    """A time in `ms` (whole ones) or in `s` (three digits)."""
    return f"{1000 * seconds:.0f}" if unit == "ms" else f"{seconds:.3g}"


def axis_columns(axes: Sequence[str]) -> list[Column]:
    """A column for each axis of a sweep, under its name."""
    return [Column(axis, plain(axis)) for axis in axes]


def goodput_columns(has_tokens: bool, unit: str = "ms") -> list[Column]:
    """The printed figures of docs/metrics.md; `unit` is that of long times.

    `has_tokens`: whether requests deliver many units, whose rates and pace are then figures of their own.
    """
    tokens = [Column("token goodput/s", number("token_goodput", 4)), Column("tokens/s", number("throughput", 4))]
    pace = [
        Column(f"TTFT {unit} p50/p99", spread("ttft", unit)),
        Column("TPOT ms p50/p99", spread("tpot")),
    ]
    return [
        *(tokens if has_tokens else []),
        Column("req goodput/s", number("request_goodput")),
        Column("SLO met", percent("slo_attainment")),
        Column("rejected", percent("reject_rate")),
        *(pace if has_tokens else []),
        Column(f"e2e {unit} p50/p99", spread("e2el", unit)),
        Column(f"late {unit} p50/p99", spread("lateness", unit)),
    ]


def format_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """An aligned table with a heading; a column without anything in it is left out."""
    lines = [[column.text(row) for column in columns] for row in rows]
    shown = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    lines = [[column.heading for column in columns], *lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(line[i].rjust(widths[i]) for i in shown).rstrip() for line in lines)
