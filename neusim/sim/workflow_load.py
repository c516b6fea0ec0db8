"""What a simulated run of workflows is given: who comes when, what calls really do, and the replicas of each pool."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from neusim.sim.device import Device
from neustream.latency import BatchLatency
from neustream.tables import LatencyTable
from neustream.workflow.graph import Node, Workflow
from neustream.workflow.run import Run
from neustream.workflow.stage import TOOL

TOOL_MEDIAN, TOOL_SIGMA = 1.0, 0.4
"""Seconds of a tool's run where nobody measured them: log-normal."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a call really does, which no rule and no policy knows before it has ended."""

    units: int = 1
    label: str = "ok"
    seconds: float = 0.0
    """What a tool's run takes."""


class WorkflowWorkload(Protocol):
    """Which workflows come, when, and what their calls really do."""

    @property
    def window(self) -> float:
        """Seconds in which they come, as planned: rates of nodes are taken over as many."""
        ...

    def runs(self, workflow: Workflow) -> Iterator[Run]:
        """Fresh workflows in order of arrival; the same ones at every call."""
        ...

    def size(self, run: Run, node: Node) -> int:
        """Units of input of the next call, from what the run has produced so far."""
        ...

    def truth(self, run: Run, node: Node) -> Truth:
        """What the call under way will do; the same at every call."""
        ...


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The replicas of one pool: how many, and what each of them is."""

    replicas: int
    device: Device | None = None
    """What each is simulated on; None for a tool."""
    seats: int = 1
    """Runs of a tool at once, per replica."""
    table: LatencyTable | None = None
    """What its steps take, where that is not what the model's table says: SLOs are still made from that one."""

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"a pool needs at least one replica, got {self.replicas}")
        if self.seats < 1:
            raise ValueError(f"a tool needs at least one seat, got {self.seats}")


def tool_table(name: str) -> LatencyTable:
    """The table of a tool whose runs take the assumed seconds: their mean."""
    mean = TOOL_MEDIAN * math.exp(TOOL_SIGMA**2 / 2)
    return LatencyTable(name, "cpu", {TOOL: BatchLatency((1,), (mean,))})
