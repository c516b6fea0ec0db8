"""A small graph, its costs, and a fake world that carries a coordinator's actions out on a virtual clock."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from neustream import LatencyTable
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.workflow.budget import Budget, make_budget
from neustream.workflow.coordinator import Action, Coordinator, Send
from neustream.workflow.graph import Edge, Node, Workflow
from neustream.workflow.pool import Replica
from neustream.workflow.run import Run
from neustream.workflow.stage import TOOL, StageCost, llm_stage, tool_stage

LLM = LatencyTable("m", "d", {"prefill": TokensLatency((0.1, 0.01, 0.0)), "decode": ContextLatency((0.1, 0.0))})
TOOLS = LatencyTable("t", "d", {TOOL: BatchLatency((1,), (0.5,))})

WRITE = Node("write", "m", max_units=20)
EXECUTE = Node("execute", "t", kind="tool")
REPAIR = Node("repair", "m", max_units=20, pool="write")
LOOK = Node("look", "m", max_units=20)
LOOP = Workflow(
    "loop",
    (WRITE, EXECUTE, REPAIR, LOOK),
    (
        Edge("write", "execute"),
        Edge("execute", "repair", when="failed", at_most=2),
        Edge("execute", "look"),
        Edge("repair", "execute"),
    ),
)


def costs(workflow: Workflow, scale: float = 2.0) -> dict[str, StageCost]:
    return {
        node.name: tool_stage(node, TOOLS, 2.5)
        if node.kind == "tool"
        else llm_stage(node, LLM, scale, typical_size=10, typical_units=10)
        for node in workflow.nodes
    }


def coordinator(
    workflow: Workflow = LOOP,
    budget: str | Budget = "carry",
    *,
    replicas: int = 1,
    credit: int = 1,
    on_end: Callable[[Run], None] = lambda run: None,
) -> Coordinator:
    pools = {
        name: [Replica(f"{name}-{i}", credit) for i in range(replicas)]
        for name in {node.pool_name for node in workflow.nodes}
    }
    rule = make_budget(budget) if isinstance(budget, str) else budget
    return Coordinator(workflow, costs(workflow), pools, rule, lambda run, node: 10, on_end)


class FakeWorld:
    """Replicas that take a random time for each call; some calls fail, some replicas die and come back."""

    def __init__(self, target: Coordinator, seed: int, *, failures: float = 0.2, losses: int = 0) -> None:
        self.target = target
        self.dice = random.Random(seed)
        self.failures = failures
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.gone: set[str] = set()
        self._order = itertools.count()
        self._replica_of: dict[str, str] = {}
        for _ in range(losses):
            self.at(self.dice.uniform(0.0, 40.0), self._lose_one)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self._order), what))

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._replica_of[action.call] = action.replica
                units = 1 if action.node.kind == "tool" else self.dice.randint(1, action.node.max_units)
                begun = self.now + self.dice.uniform(0.01, 1.0)
                ended = begun + self.dice.uniform(0.01, 4.0)
                self.at(begun, lambda a=action: self._tell(a, lambda: self.target.delivered(a.call, 1, self.now)))
                label = "failed" if self.dice.random() < self.failures else "ok"
                self.at(ended, lambda a=action, u=units, w=label: self._tell(a, lambda: self._end(a, w, u)))

    def run(self) -> None:
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()
            self.target.check_integrity()

    def _end(self, action: Send, label: str, units: int) -> list[Action]:
        if self.dice.random() < 0.05:
            return self.target.given_up(action.call, "its policy gave it up", self.now)
        return self.target.ended(action.call, label, units, self.now)

    def _tell(self, action: Send, what: Callable[[], list[Action]]) -> None:
        if action.replica not in self.gone:
            self.carry_out(what())

    def _lose_one(self) -> None:
        pool = self.dice.choice(sorted(self.target.pools))
        names = sorted(self.target.pools[pool].replicas)
        if not names:
            return
        name = self.dice.choice(names)
        self.gone.add(name)
        self.carry_out(self.target.lost(pool, name, self.now))
        again = Replica(f"{name}'")
        self.at(self.now + 1.0, lambda: self.carry_out(self.target.gained(pool, again, self.now)))
