"""The latency table of an experiment: found, or measured on first use."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neustream.cli.arguments import BadInput, RunFailed
from neustream.cli.paths import ROOT, TABLES
from neustream.tables import LatencyTable, TableError, load_table, table_path


def table_file(options: argparse.Namespace, name: str) -> Path:
    """Where the table lies: `--table`, or the place of the table of that name for this device."""
    if options.table is not None:
        path: Path = options.table
        return path
    return table_path(TABLES, options.slug, name)


def read_table(path: Path, model: str) -> LatencyTable:
    """Load and check the table of a model. Raises BadInput."""
    try:
        return load_table(path, model=model)
    except TableError as error:
        raise BadInput(f"table {error}") from error


def check_made_for(path: Path, table: LatencyTable, flag: str, value: Any, field: str) -> None:
    """Raises BadInput where the table says that it was measured with another `value` than `flag` asks for."""
    measured = table.info.get(field, value)
    if value not in (None, "auto") and measured != value:
        raise BadInput(f"table {path}: {field} is {measured}, but {flag} is {value}")


def profile_table(path: Path, model: str, options: argparse.Namespace, flags: Sequence[str] = ()) -> None:
    """Measure a coarse table, in a process of its own, which takes its memory and threads with it when it ends.

    Raises RunFailed if the profiler fails.
    """
    print(f"no latency table of {model} on {options.slug}: measuring one first", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "neusim.profile", "--model", model, "--out", str(path), "--quick"]
    command += ["--device", options.device, *flags]
    command += ["--dtype", options.dtype] if options.dtype else []
    code = subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode
    if code in (-2, 130):
        raise KeyboardInterrupt
    if code:
        raise RunFailed(f"no latency table: the profiler ended with exit code {code} ({' '.join(command)})")


def table_header(path: Path, table: LatencyTable) -> dict[str, Any]:
    """What a summary says of its table; the digest tells tables apart when runs are compared."""
    return {
        "table": str(path),
        "table_origin": table.origin,
        "table_device": table.device,
        "table_digest": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    }
