"""Rows for tables and figures from pandas frames."""

from __future__ import annotations

import pandas as pd

from neustream.cli.report import Row


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """The rows of a frame, None where a figure is missing."""
    rows: list[Row] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows
