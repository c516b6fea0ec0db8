"""What requests need of a device by when: the material of the upper bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neustream.request import Request
from neustream.tables import KV_BLOCK

Floats = NDArray[np.float64]
MAX_MOMENTS = 400
"""Points in time at which demands are looked at; leaving some out only loosens the bound."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What every schedule that is bounded has to do with. The fields mean what they mean in `neusim.sim.Device`."""

    groups: tuple[tuple[str, ...], ...] | None = None
    """The modules of each process; None: one process runs them all."""
    max_batch: int | None = None
    """Seats in one step, beside what the table covers."""
    handover: float = 0.0
    overhead: float = 0.0
    contention: Literal["table", "full", "none"] = "none"
    kv_blocks: int | None = None
    block_size: int = KV_BLOCK

    def __post_init__(self) -> None:
        for name in ("max_batch", "kv_blocks", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("handover", "overhead"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name):g}")
        if self.contention not in ("table", "full", "none"):
            raise ValueError(f"contention must be table, full or none, got {self.contention!r}")

    def beside(self, module: str) -> frozenset[str] | None:
        """The modules of this one's process, itself included; None: all there are."""
        if self.groups is None:
            return None
        return frozenset(next((group for group in self.groups if module in group), (module,)))

    def crosses(self, module: str, following: str) -> bool:
        """Whether a request is handed over between these modules."""
        beside = self.beside(module)
        return beside is not None and following not in beside


@dataclass(frozen=True, slots=True)
class Crowd:
    """All requests that a schedule may have there, also those that are late and fill up a batch."""

    seats: int
    """Seats of all of them together."""
    units: int
    """What one step can process at the most: of each, its input and all output but the last unit."""
    longest: int
    """Units of input and output of the largest."""
    smallest: int
    """Units of input of the smallest."""
    widest: int
    """The most seats of one."""

    @classmethod
    def of(cls, requests: Sequence[Request]) -> Crowd:
        """The crowd of a workload."""
        units = [request.size + request.max_units for request in requests]
        return cls(
            sum(request.width for request in requests),
            sum((each - 1) * request.width for each, request in zip(units, requests, strict=True)),
            max(units, default=0),
            min((request.size for request in requests), default=1),
            max((request.width for request in requests), default=1),
        )


@dataclass(frozen=True, slots=True)
class Demand:
    """`seconds[i, j]`: device seconds that request i, if it meets its SLO, needs between its arrival and `until[j]`.

    Shapes (n, m) and (m,). The seconds of any set of requests may be added up.
    """

    until: Floats
    seconds: Floats

    def of(self, kept: NDArray[np.bool_]) -> Demand:
        """The demand of some of the requests."""
        return self if kept.all() else Demand(self.until, self.seconds[kept])


def levelled(costs: Sequence[float] | Floats) -> Floats:
    """The least cost of a batch of at least so many seats; index b - 1 is for b.

    A table may say that a larger batch is faster. Then a schedule could fill up a batch with requests that are late
    anyway; so those in it who count pay for the cheapest batch that holds them.
    """
    least: Floats = np.minimum.accumulate(np.asarray(costs, dtype=np.float64)[::-1])[::-1]
    return least


def moments(times: Floats) -> Floats:
    """At most MAX_MOMENTS of these times, evenly by rank, the last included."""
    ordered: Floats = np.unique(times[np.isfinite(times)])
    if len(ordered) <= MAX_MOMENTS:
        return ordered
    ranks = np.linspace(0, len(ordered) - 1, MAX_MOMENTS).round().astype(int)
    thinned: Floats = ordered[ranks]
    return thinned


class Seats:
    """How many seats the windows of requests take at each moment: no batch can have more that count."""

    def __init__(self, starts: Floats, ends: Floats, widths: Sequence[int]) -> None:
        """Windows [start, end], shapes (n,), and the seats of each; a window that is turned around counts nowhere."""
        order = np.unique(np.concatenate([starts, ends]))
        change = np.zeros(len(order) + 1)
        np.add.at(change, np.searchsorted(order, starts), widths)
        np.add.at(change, np.searchsorted(order, np.maximum(ends, starts)), np.negative(widths))
        self.edges = order
        self.taken = np.cumsum(change)[: max(len(order) - 1, 0)].astype(int)
        """Seats taken between `edges[k]` and `edges[k + 1]`."""

    def within(self, start: float, end: float) -> tuple[NDArray[np.int_], Floats]:
        """The seats taken and the lengths of the pieces of [start, end]; both are edges."""
        first, last = np.searchsorted(self.edges, (start, end))
        return self.taken[first:last], np.diff(self.edges[first : last + 1])

    @property
    def most(self) -> int:
        """The most seats that are ever taken at once."""
        return int(self.taken.max(initial=1))
