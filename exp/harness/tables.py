"""The latency table of an experiment: found, or measured on first use, and checked against what is to run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exp.harness.options import Options
from neustream.cli.arguments import BadInput, RunFailed
from neustream.cli.paths import ROOT, TABLES
from neustream.tables import LatencyTable, TableError, load_table, table_path


def table_file(options: Options) -> Path:
    """Where the table lies: `--table`, or the place of the table of that name for this device."""
    common = options.common
    return common.table if common.table is not None else table_path(TABLES, common.slug, options.table_name)


def read_table(path: Path, options: Options, modules: Sequence[str]) -> LatencyTable:
    """Load and check a table: it must be of the model, its `modules`, its data type and as many devices.

    Raises BadInput naming what differs.
    """
    common = options.common
    try:
        table = load_table(path, model=common.model)
    except TableError as error:
        raise BadInput(f"table {error}") from error
    missing = [module for module in modules if module not in table]
    if missing:
        raise BadInput(
            f"table {path}: has modules {', '.join(table.modules)}; {common.model} needs {', '.join(missing)}"
        )
    _check_made_for(path, table, "--tp", options.tensor_parallel, "tensor_parallel")
    if common.dtype not in (None, "auto"):
        _check_made_for(path, table, "--dtype", common.dtype, "dtype")
    return table


def _check_made_for(path: Path, table: LatencyTable, flag: str, value: Any, field: str) -> None:
    """Raises BadInput where the table says that it was measured with another `value` than `flag` asks for."""
    measured = table.info.get(field, value)
    if measured != value:
        raise BadInput(f"table {path}: {field} is {measured}, but {flag} is {value}")


def profile_table(path: Path, options: Options) -> None:
    """Measure a coarse table, in a process of its own, which takes its memory and threads with it when it ends.

    Raises RunFailed if the profiler fails.
    """
    common = options.common
    print(f"no latency table of {options.profiled} on {common.slug}: measuring one first", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "neusim.profile", "--model", options.profiled, "--out", str(path), "--quick"]
    command += ["--device", common.device, "--tp", str(options.tensor_parallel)]
    command += ["--dtype", common.dtype] if common.dtype else []
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
