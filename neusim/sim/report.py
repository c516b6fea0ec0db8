"""Prints simulated runs as an aligned table."""

from __future__ import annotations

from collections.abc import Sequence

from neustream.cli.report import Column, Row, format_table, goodput_columns, plain, text

AXES = ("rate", "cv", "slo_scale", "pslo", "dslo")


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
    ]
    return format_table(rows, columns)
