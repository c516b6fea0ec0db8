"""What requests need of a device by when: the material of the upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MAX_MOMENTS = 400
"""Points in time at which demands are looked at; leaving some out only loosens the bound."""


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
