"""Prints simulated runs as an aligned table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

AXES = ("rate", "cv", "slo_scale", "pslo", "dslo")


def format_rows(rows: Sequence[Row]) -> str:
    """One line per run under a heading; a column that no run has is left out."""
    columns = [column for column in _columns(rows) if any(column[1](row) for row in rows)]
    lines = [[heading for heading, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _columns(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    has_tokens = any("max_tokens" in row for row in rows)
    return [
        ("policy", lambda row: str(row["policy"])),
        *((axis.replace("_", " "), _short(axis)) for axis in AXES),
        ("good", _short("good")),
        ("bound", _short("bound")),
        ("of", _short("requests")),
        ("req goodput/s", _figure("request_goodput", 3)),
        *([("token goodput/s", _figure("token_goodput", 4))] if has_tokens else []),
        ("SLO met", _percent("slo_attainment")),
        ("rejected", _percent("reject_rate")),
        *([("TTFT s p50/p99", _spread("ttft")), ("TPOT ms p50/p99", _spread("tpot", 1000))] if has_tokens else []),
        ("e2e s p50/p99", _spread("e2el")),
        ("late s p50/p99", _spread("lateness")),
    ]


def _short(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row.get(key) is None else f"{row[key]:.6g}"


def _figure(key: str, digits: int) -> Callable[[Row], str]:
    return lambda row: f"{row[key]:#.{digits}g}".rstrip(".")


def _percent(key: str) -> Callable[[Row], str]:
    return lambda row: f"{100 * row[key]:.1f}%"


def _spread(key: str, scale: float = 1.0) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        values = [row[key][name] for name in ("p50", "p99")]
        return "/".join("-" if value is None else f"{scale * value:.3g}" for value in values)

    return show
