"""The latency table of a diffusion experiment: found, or measured on first use."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

from diffusion_plugin.models import ModelSpec
from exp.common import BadInput, RunFailed
from exp.common.folder import ROOT
from neusim.profiling.settings import TABLES
from neustream.capacity import pipeline_capacity
from neustream.tables import LatencyTable, TableError, load_table, table_path
from neustream.workload import LOOP_MODULE


def table_file(options: argparse.Namespace, spec: ModelSpec) -> Path:
    """Where the table lies: `--table`, or the place of this model and device."""
    if options.table is not None:
        path: Path = options.table
        return path
    return table_path(TABLES, options.slug, spec.name)


def read_table(path: Path, options: argparse.Namespace, spec: ModelSpec) -> LatencyTable:
    """Load and check the table against what is to run. Raises BadInput."""
    try:
        table = load_table(path, model=spec.name)
    except TableError as error:
        raise BadInput(f"table {error}") from error
    missing = [module for module in spec.modules if module not in table]
    if missing:
        raise BadInput(f"table {path}: lacks {', '.join(missing)}, which {spec.name} has")
    measured = table.info.get("dtype", options.dtype)
    if options.dtype not in (None, "auto") and measured != options.dtype:
        raise BadInput(f"table {path}: dtype is {measured}, but --dtype is {options.dtype}")
    return table


def profile_table(path: Path, options: argparse.Namespace, spec: ModelSpec) -> None:
    """Measure a coarse table, in a process of its own. Raises RunFailed."""
    print(f"no latency table of {spec.name} on {options.slug}: measuring one first", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "neusim.profile", "--model", spec.name, "--out", str(path)]
    command += ["--device", options.device, "--quick"]
    command += ["--dtype", options.dtype] if options.dtype else []
    code = subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode
    if code in (-2, 130):
        raise KeyboardInterrupt
    if code:
        raise RunFailed(f"no latency table: the profiler ended with exit code {code} ({' '.join(command)})")


def digest(path: Path) -> str:
    """Tells tables apart when runs are compared."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def capacity(table: LatencyTable, spec: ModelSpec, steps: tuple[int, int], slo_scale: float) -> float:
    """Requests per second of this model in the best batch within the SLO; see docs/metrics.md."""
    mean = (steps[0] + steps[1] - 1) / 2
    visits = {module: mean if module == LOOP_MODULE else 1.0 for module in spec.modules}
    largest = getattr(table[LOOP_MODULE], "largest", spec.max_batch)
    return pipeline_capacity(table, visits, slo_scale, max_batch=largest)
