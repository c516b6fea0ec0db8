"""The latency table of an LLM experiment: found, or measured on first use."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

from exp.common import BadInput, RunFailed
from exp.common.folder import ROOT
from exp.llm.model import Model
from neusim.profiling.settings import TABLES
from neustream.latency import Shape
from neustream.policies import DECODE, is_llm
from neustream.tables import LatencyTable, TableError, load_table, table_path

DEFAULT_DSLO = 1.5


def table_file(options: argparse.Namespace, model: Model) -> Path:
    """Where the table lies: `--table`, or the place of this model, device and tensor parallelism."""
    if options.table is not None:
        path: Path = options.table
        return path
    name = model.name if options.tp == 1 else f"{model.name}.tp{options.tp}"
    return table_path(TABLES, options.slug, name)


def read_table(path: Path, options: argparse.Namespace, model: Model) -> LatencyTable:
    """Load and check the table against what is to run. Raises BadInput."""
    try:
        table = load_table(path, model=model.name)
    except TableError as error:
        raise BadInput(f"table {error}") from error
    if not is_llm(table):
        raise BadInput(f"table {path}: has modules {', '.join(table.modules)}; an LLM's has prefill and decode")
    for flag, value, field in (("--tp", options.tp, "tensor_parallel"), ("--dtype", options.dtype, "dtype")):
        measured = table.info.get(field, value)
        if value not in (None, "auto") and measured != value:
            raise BadInput(f"table {path}: {field} is {measured}, but {flag} is {value}")
    return table


def profile_table(path: Path, options: argparse.Namespace, model: Model) -> None:
    """Measure a coarse table, in a process of its own, which takes its memory and threads with it when it ends."""
    print(f"no latency table of {model.name} on {options.slug}: measuring one first", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "neusim.profile", "--model", str(model.folder or model.name), "--out", str(path)]
    command += ["--device", options.device, "--tp", str(options.tp)]
    command += ["--dtype", options.dtype] if options.dtype else []
    command += ["--quick"]
    code = subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode
    if code in (-2, 130):
        raise KeyboardInterrupt
    if code:
        raise RunFailed(f"no latency table: the profiler ended with exit code {code} ({' '.join(command)})")


def digest(path: Path) -> str:
    """Tells tables apart when runs are compared."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def pace_scale(table: LatencyTable, absolute_slo: dict[str, float] | None, dslo: float, context: int) -> float:
    """The pace that the SLO asks for, as a multiple of the standalone decode step; at least 1."""
    if absolute_slo is None:
        return dslo
    if "tpot_ms" not in absolute_slo:
        return DEFAULT_DSLO
    step = table[DECODE].predict(Shape(1, 0, 0, context))
    return max(absolute_slo["tpot_ms"] / 1000 / step, 1.0)
