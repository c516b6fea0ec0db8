"""What a latency table has to say for a diffusion experiment."""

from __future__ import annotations

import argparse
from pathlib import Path

from exp.harness import tables as common
from neustream.capacity import pipeline_capacity
from neustream.catalog.images import ModelSpec
from neustream.cli.arguments import BadInput
from neustream.route import LOOP_MODULE
from neustream.tables import LatencyTable


def read_table(path: Path, options: argparse.Namespace, spec: ModelSpec) -> LatencyTable:
    """Load and check the table against what is to run. Raises BadInput."""
    table = common.read_table(path, spec.name)
    missing = [module for module in spec.modules if module not in table]
    if missing:
        raise BadInput(f"table {path}: lacks {', '.join(missing)}, which {spec.name} has")
    common.check_made_for(path, table, "--dtype", options.dtype, "dtype")
    return table


def capacity(table: LatencyTable, spec: ModelSpec, steps: tuple[int, int], slo_scale: float) -> float:
    """Requests per second of this model in the best batch within the SLO; see docs/metrics.md."""
    mean = (steps[0] + steps[1] - 1) / 2
    visits = {module: mean if module == LOOP_MODULE else 1.0 for module in spec.modules}
    largest = table[LOOP_MODULE].largest or spec.max_batch
    return pipeline_capacity(table, visits, slo_scale, max_batch=largest)
