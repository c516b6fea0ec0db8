"""What is drawn: the goodput of several policies along some axes, and their batch sizes over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neustream.cli.report import Row
from neustream.plan import MIXED
from neustream.records import StepRecord
from neustream.route import DECODE, LOOP_MODULE

Floats = NDArray[np.float64]

BINS = 200
MAIN_KINDS = (DECODE, MIXED, LOOP_MODULE)


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Batch sizes of one policy over the time of one run, in BINS equal intervals; NaN where nothing ran."""

    policy: str
    seconds: Floats
    """Middle of each interval, since the first arrival."""
    mean: Floats
    """Mean over the steps of the interval, weighted by how long they took."""
    least: Floats
    most: Floats


@dataclass(frozen=True, slots=True)
class Study:
    """One model on one device."""

    model: str
    device: str
    is_llm: bool
    origin: str
    """How the figures came about: simulated from which kind of table, or measured."""
    panels: Mapping[str, Sequence[Row]]
    """By axis: the runs that differ in it (and in the policy) alone."""
    batches: Sequence[BatchSizes] = field(default=())
    batches_at: str = ""
    """The setting of the runs behind `batches`, in words."""
    capacity: float | None = None
    """Requests per second that the device sustains, by its table."""

    @property
    def name(self) -> str:
        """For file names."""
        return f"{self.device}-{self.model}".replace("/", "-")

    @property
    def policies(self) -> list[str]:
        """Every policy that occurs."""
        rows = [row["policy"] for panel in self.panels.values() for row in panel]
        return list(dict.fromkeys([*rows, *(batches.policy for batches in self.batches)]))


def main_steps(steps: Iterable[StepRecord]) -> list[tuple[float, float, int]]:
    """`(start, end, batch size)` of the steps whose batches are drawn: of the loop, or those that decode."""
    return [(step.time, step.time + step.seconds, step.batch_size) for step in steps if step.kind in MAIN_KINDS]


def bin_batches(policy: str, steps: Sequence[tuple[float, float, int]], end: float) -> BatchSizes:
    """Sum up steps `(start, end, batch size)` of a run that lasted from 0 to `end` seconds."""
    edges = np.linspace(0.0, end, BINS + 1)
    weight, total = np.zeros(BINS), np.zeros(BINS)
    least, most = np.full(BINS, np.inf), np.full(BINS, -np.inf)
    for begun, ended, size in steps:
        first = min(max(int(begun / end * BINS), 0), BINS - 1)
        last = min(max(int(ended / end * BINS), first), BINS - 1)
        for k in range(first, last + 1):
            share = max(min(ended, edges[k + 1]) - max(begun, edges[k]), 0.0)
            if share > 0.0:
                weight[k] += share
                total[k] += share * size
                least[k], most[k] = min(least[k], size), max(most[k], size)
    ran = weight > 0
    mean = np.divide(total, weight, out=np.full(BINS, np.nan), where=ran)
    middle = (edges[:-1] + edges[1:]) / 2
    return BatchSizes(policy, middle, mean, np.where(ran, least, np.nan), np.where(ran, most, np.nan))
