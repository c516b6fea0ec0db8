"""Where the repository keeps what its commands read and write, whatever folder they are started in."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "neusim" / "tables"
"""Latency tables: `<device>/<model>.json`."""
RUNS = ROOT / "runs"
"""A folder for each experiment that was run."""
FIGURES = ROOT / "figures"
