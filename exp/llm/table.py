"""What a latency table has to say for an LLM experiment."""

from __future__ import annotations

import argparse
from pathlib import Path

from exp.harness import tables as common
from exp.llm.model import Model
from neustream.cli.arguments import BadInput
from neustream.latency import Shape
from neustream.policies import is_llm
from neustream.route import DECODE
from neustream.tables import LatencyTable

DEFAULT_DSLO = 1.5


def read_table(path: Path, options: argparse.Namespace, model: Model) -> LatencyTable:
    """Load and check the table against what is to run. Raises BadInput."""
    table = common.read_table(path, model.name)
    if not is_llm(table):
        raise BadInput(f"table {path}: has modules {', '.join(table.modules)}; an LLM's has prefill and decode")
    common.check_made_for(path, table, "--tp", options.tp, "tensor_parallel")
    common.check_made_for(path, table, "--dtype", options.dtype, "dtype")
    return table


def pace_scale(table: LatencyTable, absolute_slo: dict[str, float] | None, dslo: float, context: int) -> float:
    """The pace that the SLO asks for, as a multiple of the standalone decode step; at least 1."""
    if absolute_slo is None:
        return dslo
    if "tpot_ms" not in absolute_slo:
        return DEFAULT_DSLO
    step = table[DECODE].predict(Shape(1, 0, 0, context))
    return max(absolute_slo["tpot_ms"] / 1000 / step, 1.0)
