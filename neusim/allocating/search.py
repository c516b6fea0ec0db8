"""Local moves on simulated goodput, from the exact model's split: shift a device, pool or split nodes of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from neusim.allocating.fluid import measure_demand, seconds_per_workflow
from neusim.allocating.model import best_split
from neusim.sim.workflow_setup import Scenario


@dataclass(frozen=True, slots=True)
class Plan:
    """Replicas by pool, and whether the nodes of a model share a pool."""

    replicas: tuple[tuple[str, int], ...]
    is_pooled: bool

    def __str__(self) -> str:
        split = ", ".join(f"{name} {count}" for name, count in self.replicas)
        return f"{split} ({'one pool a model' if self.is_pooled else 'one pool a node'})"


@dataclass(slots=True)
class Search:
    """Finds a plan for `devices`. Every plan meets the same workflows (common random numbers); none is run twice."""

    scenario: Scenario
    devices: int
    rate: float
    cv: float = 1.0
    scale: float = 1.8
    budget: str = "lookahead"
    policy: str = "neustream"
    seed: int | None = None
    deadline: float | None = None
    may_pool: bool = True
    on_run: Callable[[Plan, int], object] = lambda plan, good: None
    tried: dict[Plan, int] = field(default_factory=dict)
    """Workflows in time by plan, in the order of trying."""

    def start(self, is_pooled: bool) -> tuple[Plan, float]:
        """The exact model's split and the fluid capacity that no split exceeds. Raises ValueError: too few devices."""
        scenario = replace(self.scenario, is_pooled=is_pooled)
        counts, capacity = best_split(
            seconds_per_workflow(scenario, measure_demand(scenario), self.scale), self.devices
        )
        return Plan(tuple(counts.items()), is_pooled), capacity

    def good(self, plan: Plan) -> int:
        """Workflows in time under a plan."""
        if plan not in self.tried:
            scenario = replace(self.scenario, is_pooled=plan.is_pooled)
            load = scenario.workload(self.rate, self.cv, seed=self.seed, deadline=self.deadline)
            result = scenario.run(dict(plan.replicas), self.budget, self.policy, self.scale, load)
            self.tried[plan] = result.good
            self.on_run(plan, result.good)
        return self.tried[plan]

    def run(self) -> Plan:
        """The best plan that shifts from either start lead to; ties go to the plan that was found first."""
        can_pool = len(replace(self.scenario, is_pooled=True).pool_nodes) < len(self.scenario.pool_nodes)
        kinds = (False, True) if can_pool and self.may_pool else (False,)
        found = [self._climb(self.start(is_pooled)[0]) for is_pooled in kinds]
        return max(found, key=self.good)

    def _climb(self, plan: Plan) -> Plan:
        """Shift one device at a time while that serves more workflows in time."""
        while True:
            better = max(shifts(plan), key=self.good, default=plan)
            if self.good(better) <= self.good(plan):
                return plan
            plan = better


def shifts(plan: Plan) -> Iterator[Plan]:
    """Every plan with one device moved from one pool to another."""
    counts = dict(plan.replicas)
    for source, count in counts.items():
        for target in counts:
            if target != source and count > 1:
                moved = counts | {source: count - 1, target: counts[target] + 1}
                yield Plan(tuple(moved.items()), plan.is_pooled)
