"""An upper bound: how many requests of a workload any schedule could serve within their SLO.

Whoever meets an SLO needs the device for at least so many seconds between its arrival and any later moment t,
whatever the schedule (`neusim.bound.demand` says how many). What all requests that arrived after s and are served need
by t cannot exceed t − s. Choosing the largest set of requests that obeys this for every s and t is a relaxation
of scheduling: no schedule can serve more. docs/bound.md has the argument in full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from neusim.bound.demand import Crowd, Demand, Resources
from neusim.bound.llm import llm_demands
from neusim.bound.loop import loop_demands
from neustream.policies import is_llm
from neustream.request import Request
from neustream.tables import KV_BLOCK, LatencyTable

Layout = Literal["interleaved", "process"]
Floats = NDArray[np.float64]

MAX_REQUESTS = 1000
"""Requests in one linear program."""
ROUNDING = 1e-3
"""Well above the solver's tolerance, well below one request."""
MAX_ROUNDS = 12
ROWS_PER_ROUND = 60
TOLERANCE = 1e-7
"""Share of an interval by which its demand may exceed it before the interval becomes a constraint."""


def request_bound(
    requests: Sequence[Request],
    table: LatencyTable,
    *,
    devices: Layout = "process",
    groups: Sequence[Sequence[str]] | None = None,
    max_batch: int | None = None,
    handover: float = 0.0,
    overhead: float = 0.0,
    contention: Literal["table", "full", "none"] = "none",
    kv_blocks: int | None = None,
    block_size: int = KV_BLOCK,
) -> int:
    """The most of these fresh requests that any schedule on one device could serve within their SLO.

    `devices` says how the modules of a pipeline share it: "interleaved", one step at a time over all of them, or
    "process", several steps at once in several processes. `groups` are the modules of each process, by default one
    each. As long as `handover`, `contention` and `overhead` are left alone, "process" is valid for both. They mean
    what they mean in `neusim.sim.Device`, as do `kv_blocks` and `block_size` (None: memory without bounds). No batch
    of a pipeline is larger than the table allows (`largest_batch`); `max_batch` bounds the seats in one step further.
    Every step is taken to cost what the table says; a device that is faster than its table can beat the bound.

    Raises ValueError for values out of range, and for a table whose form is not known here.
    """
    if devices not in ("interleaved", "process"):
        raise ValueError(f"devices must be interleaved or process, got {devices!r}")
    if groups is not None and devices == "interleaved" and len(groups) > 1:
        raise ValueError(f"several groups of modules need devices process, got {groups!r}")
    split = groups or [[module] for module in table.modules]
    resources = Resources(
        None if devices == "interleaved" else tuple(tuple(group) for group in split),
        max_batch,
        handover,
        overhead,
        contention,
        kv_blocks,
        block_size,
    )
    ordered = sorted(requests, key=lambda request: request.arrival)
    # What is true of a part of the requests is true of all: the bounds of consecutive parts add up.
    parts = [ordered[i : i + MAX_REQUESTS] for i in range(0, len(ordered), MAX_REQUESTS)]
    demands = llm_demands if is_llm(table) else loop_demands
    crowd = Crowd.of(ordered)
    return sum(_bound(part, *demands(part, table, resources, crowd)) for part in parts)


def _bound(requests: Sequence[Request], eligible: NDArray[np.bool_], demands: Sequence[Demand]) -> int:
    arrivals = np.array([request.arrival for request in requests])[eligible]
    served = largest_set(arrivals, [demand.of(eligible) for demand in demands])
    return math.floor(served + ROUNDING)


def largest_set(arrivals: Floats, demands: Sequence[Demand]) -> float:
    """The linear program's optimum, by cutting planes: intervals become constraints when a solution breaks them.

    `arrivals` has shape (n,), rising. Stopping early leaves out constraints, which can only raise the bound.
    """
    num = len(arrivals)
    chosen = np.ones(num)
    rows: list[Floats] = []
    lengths: list[float] = []
    for _ in range(MAX_ROUNDS if num else 0):
        found = list(_broken(chosen, arrivals, demands))
        if not found:
            break
        for row, length in found:
            rows.append(row / length)
            lengths.append(1.0)
        result = linprog(-np.ones(num), A_ub=csr_matrix(np.array(rows)), b_ub=lengths, bounds=(0, 1), method="highs")
        if not result.success:
            raise RuntimeError(f"the bound's linear program failed: {result.message}")
        chosen = result.x
    return float(chosen.sum())


def _broken(chosen: Floats, arrivals: Floats, demands: Sequence[Demand]) -> Iterator[tuple[Floats, float]]:
    """`(row, length)` of intervals whose demand exceeds their length, the worst of each start and kind first."""
    candidates: list[tuple[float, int, int, int]] = []
    for kind, demand in enumerate(demands):
        needed = np.cumsum((chosen[:, None] * demand.seconds)[::-1], axis=0)[::-1]
        length = demand.until[None, :] - arrivals[:, None]
        excess = np.where(length > 0, needed / np.maximum(length, 1e-12), 0.0)
        worst = excess.argmax(axis=1)
        for start, until in enumerate(worst):
            if excess[start, until] > 1 + TOLERANCE:
                candidates.append((float(excess[start, until]), kind, start, int(until)))
    candidates.sort(reverse=True)
    for _, kind, start, until in candidates[:ROWS_PER_ROUND]:
        row = demands[kind].seconds[:, until].copy()
        row[:start] = 0.0
        yield row, float(demands[kind].until[until] - arrivals[start])
