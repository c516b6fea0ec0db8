"""A grid of cells under several policies, in worker processes: one row of figures for each cell and policy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from neusim.evaluating.cell import Cell, capacity, run_cell
from neusim.evaluating.policies import PolicySpec
from neusim.evaluating.slos import slo_classes
from neusim.evaluating.traffic import Traffic
from neusim.sim.parallel import outcomes
from neustream.tables import LatencyTable


@dataclass(frozen=True, slots=True)
class Grid:
    """The product of its lists. `cell` is the pattern: what no list names is taken from it."""

    cell: Cell
    tables: tuple[LatencyTable, ...]
    traffic: tuple[Traffic, ...]
    slos: tuple[str, ...]
    loads: tuple[float, ...]
    policies: tuple[PolicySpec, ...]

    def check(self) -> None:
        """Raises ValueError, one line, for an SLO kind or a policy that cannot be."""
        for slo in self.slos:
            slo_classes(slo)
        for table, policy in itertools.product(self.tables, self.policies):
            policy.make(table)

    def bases(self) -> list[Cell]:
        """A cell for each table and traffic: those that a capacity is computed for."""
        pairs = itertools.product(self.tables, self.traffic)
        return [replace(self.cell, table=table, traffic=traffic) for table, traffic in pairs]

    @property
    def num_tasks(self) -> int:
        """How often `run_grid` calls `on_done`."""
        bases = len(self.tables) * len(self.traffic)
        return bases + bases * len(self.slos) * len(self.loads) * len(self.policies)


def run_grid(grid: Grid, *, processes: int = 1, on_done: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Run it all: first the capacities, then each cell under each policy. Rows are in the order of the lists."""
    bases = grid.bases()
    rates = _all(capacity, bases, processes, on_done)
    cells = [
        replace(base, slo=slo, load=load, rate=load * rate)
        for base, rate in zip(bases, rates, strict=True)
        for slo, load in itertools.product(grid.slos, grid.loads)
    ]
    return _all(_run, list(itertools.product(cells, grid.policies)), processes, on_done)


def _run(task: tuple[Cell, PolicySpec]) -> dict[str, Any]:
    return run_cell(*task)


def _all(run: Callable[[Any], Any], tasks: Sequence[Any], processes: int, on_done: Callable[[], None]) -> list[Any]:
    found: dict[int, Any] = {}
    for i, outcome in outcomes(partial(run), tasks, processes):
        found[i] = outcome
        on_done()
    return [found[i] for i in range(len(tasks))]
