"""Workflows of any graph with sizes, lengths and results drawn at random, each call by its own seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from neusim.sim.workflow_load import TOOL_MEDIAN, TOOL_SIGMA, Truth
from neustream.catalog.workflows import Typical
from neustream.workflow.graph import Node, Workflow
from neustream.workflow.run import Run
from neustream.workload import gamma_arrivals

SIGMA = 0.35
"""Of the log-normal factor on typical sizes and lengths."""
BRANCH_SHARE = 0.2
"""How often a result takes an edge that is for that result only."""


class SampledWorkflows:
    """`num` workflows with gamma arrivals; `typical` has the medians of each node's sizes and lengths.

    `deadline` is one constant for all in seconds from the arrival, or None: the sum of the stages' own SLOs. Raises
    ValueError for a node whose sizes are not known.
    """

    def __init__(
        self,
        workflow: Workflow,
        typical: Mapping[str, Typical],
        num: int,
        rate: float,
        cv: float,
        *,
        seed: int = 0,
        deadline: float | None = None,
    ) -> None:
        for node in workflow.nodes:
            if node.kind == "llm" and node.name not in typical:
                raise ValueError(f"workflow {workflow.name!r}: nothing says how large the calls of {node.name!r} are")
        self.workflow = workflow
        self.typical = typical
        self.seed = seed
        self.deadline = deadline
        self.window = num / rate
        self.arrivals = gamma_arrivals(rate, cv, num, seed)

    def runs(self, workflow: Workflow) -> Iterator[Run]:
        for i, arrival in enumerate(self.arrivals):
            due = None if self.deadline is None else float(arrival) + self.deadline
            yield Run(str(i), workflow, float(arrival), due)

    def size(self, run: Run, node: Node) -> int:
        if node.kind != "llm":
            return 1
        return max(round(self.typical[node.name].size * self._dice(run, node, 1).lognormvariate(0.0, SIGMA)), 1)

    def truth(self, run: Run, node: Node) -> Truth:
        dice = self._dice(run, node, 0)
        label = "ok"
        for edge in self.workflow.leaving(node.name):
            if edge.when is not None and dice.random() < BRANCH_SHARE:
                label = edge.when
        if node.kind == "tool":
            return Truth(label=label, seconds=TOOL_MEDIAN * dice.lognormvariate(0.0, TOOL_SIGMA))
        if node.kind == "image":
            return Truth(label=label)
        units = round(self.typical[node.name].units * dice.lognormvariate(0.0, SIGMA))
        return Truth(min(max(units, 1), node.max_units), label)

    def _dice(self, run: Run, node: Node, calls_to_come: int) -> random.Random:
        """The dice of one call, the same whenever it is asked about."""
        return random.Random(f"{self.seed}/{run.run_id}/{node.name}/{len(run.visits) + calls_to_come}")
