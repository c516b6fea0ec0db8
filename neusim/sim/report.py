"""Prints simulated runs as an aligned table."""

from __future__ import annotations

from collections.abc import Sequence

from neustream.cli.report import Column, Row, format_table, goodput_columns, percent, plain, spread, text

BY_MEANS = Column("as vLLM counts", percent("mean_attainment"))
"""Requests whose TTFT and mean TPOT are within their SLO: what `--goodput` of vLLM's benchmark counts."""
AXES = ("rate", "cv", "trace_scale", "slo_scale", "pslo", "dslo", "ttft_ms", "tpot_ms", "e2el_ms")


def format_rows(rows: Sequence[Row]) -> str:
    """One line per run under a heading; a column that no run has is left out."""
    has_tokens = any("max_tokens" in row for row in rows)
    columns = [
        Column("policy", text("policy")),
        *(Column(axis.replace("_", " "), plain(axis, 6)) for axis in AXES),
        Column("good", plain("good", 6)),
        Column("bound", plain("bound", 6)),
        Column("of", plain("requests", 6)),
        *goodput_columns(has_tokens, "s"),
        *([BY_MEANS] if has_tokens else []),
        *([Column("prefix hits", percent("spared"))] if any("spared" in row for row in rows) else []),
    ]
    return format_table(rows, columns)


def format_classes(rows: Sequence[Row]) -> str:
    """One line per run and SLO class; empty where no run has classes of a name."""
    lines = [
        {**{axis: row.get(axis) for axis in ("policy", *AXES)}, "class": name, **figures}
        for row in rows
        for name, figures in row.get("classes", {}).items()
        if name
    ]
    columns = [
        Column("policy", text("policy")),
        *(Column(axis.replace("_", " "), plain(axis, 6)) for axis in AXES),
        Column("class", text("class")),
        Column("good", plain("good", 6)),
        Column("of", plain("requests", 6)),
        Column("SLO met", percent("slo_attainment")),
        BY_MEANS,
        Column("rejected", percent("reject_rate")),
        Column("late s p50/p99", spread("lateness", "s")),
    ]
    return format_table(lines, columns) if lines else ""


def format_sizes(rows: Sequence[Row]) -> str:
    """One line per run: good requests in per cent by tenths of the prompts' lengths, the shortest first."""
    lines = []
    for row in rows:
        line = {axis: row.get(axis) for axis in ("policy", *AXES)}
        for part in row.get("by_size", []):
            heading = f"to {part['most']}"
            line[heading] = f"{100 * part['good'] / part['requests']:.0f}%"
        lines.append(line)
    headings = dict.fromkeys(heading for line in lines for heading in line if heading.startswith("to "))
    columns = [
        Column("policy", text("policy")),
        *(Column(axis.replace("_", " "), plain(axis, 6)) for axis in AXES),
        *(Column(heading, text(heading)) for heading in headings),
    ]
    return format_table(lines, columns)
