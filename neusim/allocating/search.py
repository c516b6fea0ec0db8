"""Local moves on simulated goodput from the exact model's split: shift, join, split replicas; pool nodes of a model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from neusim.allocating.fluid import measure_demand, seconds_per_workflow
from neusim.allocating.model import best_split
from neusim.allocating.plan import Plan, shifts, spreads
from neusim.allocating.spread import spread_table
from neusim.sim.parallel import outcomes
from neusim.sim.workflow_setup import Scenario

SCREENED = 100
"""Workflows with which all moves are compared first, where there are more moves than `IN_FULL`."""
IN_FULL = 3
"""Moves that are then simulated with all workflows: the best of the first comparison."""


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
    may_spread: bool = True
    """Whether replicas may be spread over several devices (tensor parallelism)."""
    processes: int = 1
    on_run: Callable[[Plan, int], object] = lambda plan, good: None
    tried: dict[Plan, int] = field(default_factory=dict)
    """Workflows in time by plan, in the order of trying."""
    screened: dict[Plan, int] = field(default_factory=dict)
    """The same of the first `SCREENED` workflows, of plans that were compared with these first."""

    def start(self, is_pooled: bool) -> tuple[Plan, float]:
        """The exact model's split and the fluid capacity that no split exceeds. Raises ValueError: too few devices."""
        scenario = replace(self.scenario, is_pooled=is_pooled)
        counts, capacity = best_split(
            seconds_per_workflow(scenario, measure_demand(scenario), self.scale), self.devices
        )
        return Plan(tuple(counts.items()), is_pooled), capacity

    def good(self, plan: Plan) -> int:
        """Workflows in time under a plan."""
        self._run_all([plan])
        return self.tried[plan]

    @property
    def kinds(self) -> tuple[bool, ...]:
        """Whether plans with a pool for each node are tried, and with a pool for each model."""
        can_pool = len(replace(self.scenario, is_pooled=True).pool_nodes) < len(self.scenario.pool_nodes)
        kinds = (False, True) if can_pool and self.may_pool else (self.scenario.is_pooled,)
        return tuple(kind for kind in kinds if self.devices >= self._num_pools(kind)) or kinds[-1:]

    @property
    def least_devices(self) -> int:
        """Devices without which no plan is possible."""
        return min(self._num_pools(kind) for kind in ((False, True) if self.may_pool else (self.scenario.is_pooled,)))

    def check(self) -> None:
        """Raises ValueError, one line, where there are too few devices."""
        for is_pooled in self.kinds:
            self.start(is_pooled)

    def capacity(self, plan: Plan) -> float:
        """The fluid capacity that no split of pools like the plan's exceeds, one device a replica."""
        return self.start(plan.is_pooled)[1]

    def run(self) -> Plan:
        """The best plan that moves from either start lead to; ties go to the plan that was found first."""
        starts = [self.start(is_pooled)[0] for is_pooled in self.kinds]
        self._run_all(starts)
        return max([self._climb(plan) for plan in starts], key=self.good)

    def _num_pools(self, is_pooled: bool) -> int:
        return len(replace(self.scenario, is_pooled=is_pooled).pool_nodes)

    def _climb(self, plan: Plan) -> Plan:
        """Move while that serves more workflows in time."""
        while True:
            moves = list(self._moves(plan))
            if len(moves) > IN_FULL and self.scenario.num > SCREENED:
                self._screen(moves)
                moves = sorted(moves, key=lambda move: -self.screened[move])[:IN_FULL]
            self._run_all(moves)
            better = max(moves, key=self.good, default=plan)
            if self.good(better) <= self.good(plan):
                return plan
            plan = better

    def _moves(self, plan: Plan) -> Iterator[Plan]:
        yield from shifts(plan)
        if self.may_spread:
            yield from (move for move in spreads(plan) if self._is_possible(move))

    def _is_possible(self, plan: Plan) -> bool:
        nodes = replace(self.scenario, is_pooled=plan.is_pooled).pool_nodes
        tables = ((self.scenario.tables[nodes[pool][0].module], count) for pool, count in plan.spread)
        return all(spread_table(table, count) is not None for table, count in tables)

    def _run_all(self, plans: Iterable[Plan]) -> None:
        todo = [plan for plan in dict.fromkeys(plans) if plan not in self.tried]
        found = dict(self._outcomes(todo, self.scenario.num))
        for plan in todo:
            self.tried[plan] = found[plan]

    def _screen(self, plans: Iterable[Plan]) -> None:
        todo = [plan for plan in dict.fromkeys(plans) if plan not in self.screened]
        self.screened.update(self._outcomes(todo, SCREENED))

    def _outcomes(self, plans: list[Plan], num: int) -> Iterator[tuple[Plan, int]]:
        if not plans:
            return
        case = Case(
            replace(self.scenario, num=num),
            *(self.rate, self.cv, self.scale, self.budget, self.policy, self.seed, self.deadline),
        )
        for at, good in outcomes(case.good, plans, self.processes):
            self.on_run(plans[at], good)
            yield plans[at], good


@dataclass(frozen=True, slots=True)
class Case:
    """What every plan is judged on."""

    scenario: Scenario
    rate: float
    cv: float
    scale: float
    budget: str
    policy: str
    seed: int | None
    deadline: float | None

    def good(self, plan: Plan) -> int:
        """Workflows in time under a plan."""
        scenario = replace(self.scenario, is_pooled=plan.is_pooled)
        load = scenario.workload(self.rate, self.cv, seed=self.seed, deadline=self.deadline)
        tables = {
            pool: spread_table(scenario.tables[scenario.pool_nodes[pool][0].module], count)
            for pool, count in plan.spread
        }
        known = {pool: table for pool, table in tables.items() if table is not None}
        assert len(known) == len(tables)
        replicas = dict(plan.replicas)
        return scenario.run(replicas, self.budget, self.policy, self.scale, load, tables=known).good


def every_plan(names: list[str], devices: int, is_pooled: bool) -> Iterator[Plan]:
    """All splits of so many devices over these pools, one device a replica."""
    for counts in itertools.product(range(1, devices + 1), repeat=len(names)):
        if sum(counts) == devices:
            yield Plan(tuple(zip(names, counts, strict=True)), is_pooled)
