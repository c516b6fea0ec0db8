"""What a call of a node costs and by when it is due: a node, its latency table, and its part of the SLO."""

from __future__ import annotations

from dataclasses import dataclass

from neustream.route import Route, Stage, llm_route, pipeline_route
from neustream.slo import AbsoluteSlo, Deadlines, ScaleSlo, Slo
from neustream.tables import LatencyTable
from neustream.workflow.graph import Node

TOOL = "execute"
"""The module of a tool's table: one visit is one run."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """The cost and the SLO of one node's calls. `slo` is the stage's own, counted from when the call is made."""

    node: Node
    table: LatencyTable
    slo: Slo
    steps: int = 1
    """Denoising steps of an image node's calls."""
    typical_size: int = 1
    """Units of input that a call is taken to have until enough have finished."""
    typical_units: int = 1
    """Output units that a call is taken to have until enough have finished."""

    def route(self) -> Route:
        """The way of one call through its module."""
        if self.node.kind == "llm":
            return llm_route(self.node.max_units)
        if self.node.kind == "image":
            return pipeline_route(self.table.modules, self.steps)
        return (Stage(TOOL),)

    def deadlines(self, at: float, size: int) -> Deadlines:
        """The deadlines by the stage's own SLO of a call that is made at `at` with `size` units of input."""
        return self.slo.bind(at, self.route(), size, self.table)

    def alone(self, size: int, units: int) -> float:
        """Seconds that a call with this input and this many output units takes on an idle device."""
        return ScaleSlo(1.0, 1.0).bind(0.0, self.route(), size, self.table).at(units)

    def granted(self, size: int, units: int) -> float:
        """Seconds that the stage's own SLO grants such a call from start to end."""
        return self.deadlines(0.0, size).at(units)


def llm_stage(node: Node, table: LatencyTable, scale: float, *, typical_size: int, typical_units: int) -> StageCost:
    """A language model's stage whose first token and pace are due at `scale` × the standalone latency."""
    return StageCost(node, table, ScaleSlo(scale, scale), typical_size=typical_size, typical_units=typical_units)


def image_stage(node: Node, table: LatencyTable, scale: float, steps: int) -> StageCost:
    """A pipeline's stage whose image is due at `scale` × the standalone latency of `steps` denoising steps."""
    return StageCost(node, table, ScaleSlo(scale), steps)


def tool_stage(node: Node, table: LatencyTable, seconds: float) -> StageCost:
    """A tool's stage, due `seconds` after it is called."""
    return StageCost(node, table, AbsoluteSlo(e2el=seconds))
