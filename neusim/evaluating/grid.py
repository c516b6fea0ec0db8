"""A grid of cells under several policies, in worker processes: one row of figures for each cell and policy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from neusim.evaluating.cell import Cell, capacity, run_cell
from neusim.evaluating.kept import Kept, key_of
from neusim.evaluating.policies import PolicySpec
from neusim.evaluating.slos import slo_classes
from neusim.evaluating.traffic import Traffic
from neusim.sim.parallel import outcomes
from neustream.tables import LatencyTable

Row = dict[str, Any]
"""One run: see `run_cell`."""


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


def run_grid(
    grid: Grid, *, processes: int = 1, on_done: Callable[[], None] = lambda: None, kept: Kept | None = None
) -> list[Row]:
    """Run it all: first the capacities, then each cell under each policy. Rows are in the order of the lists.

    What `kept` has is not run again, and each further row is added to it as it comes.
    """
    kept = kept or Kept(None)
    rates: dict[int, float] = {}
    bases = grid.bases()
    for i, rate in outcomes(capacity, bases, processes):
        rates[i] = rate
        on_done()
    cells = [
        replace(base, slo=slo, load=load, rate=load * rates[i])
        for i, base in enumerate(bases)
        for slo, load in itertools.product(grid.slos, grid.loads)
    ]
    tasks = list(itertools.product(cells, grid.policies))
    keys = [key_of({**cell.axes, "policy": policy.label}) for cell, policy in tasks]
    rows = {i: kept.rows[key] for i, key in enumerate(keys) if key in kept.rows}
    for _ in rows:
        on_done()
    todo = [i for i in range(len(tasks)) if i not in rows]
    for at, row in outcomes(_run, [tasks[i] for i in todo], processes):
        rows[todo[at]] = row
        kept.add(row)
        on_done()
    return [rows[i] for i in range(len(tasks))]


def _run(task: tuple[Cell, PolicySpec]) -> Row:
    return run_cell(*task)
