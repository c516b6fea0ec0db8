"""Which programs get a free seat, and which are given up: pure, on the caller's clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from neustream.latency import BatchLatency
from neustream.request import Request

ENOUGH = 8
"""Programs after which what they took is believed more than the table."""
REMEMBERED = 64


@dataclass(slots=True)
class RunSeconds:
    """What a program is expected to take: the median of the last ones, until there are enough the table's."""

    table: BatchLatency | None = None
    _seen: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def add(self, seconds: float) -> None:
        """A program has taken so long."""
        self._seen.append(seconds)

    def expect(self, num_running: int) -> float:
        """Seconds of a program beside which `num_running - 1` others run; 0 where nothing is known."""
        if len(self._seen) >= ENOUGH or (self.table is None and self._seen):
            return median(self._seen)
        return self.table.at(num_running) if self.table is not None else 0.0


def choose(
    now: float, waiting: Iterable[Request], ends: Sequence[float], seats: int, seconds: float
) -> tuple[list[Request], list[Request]]:
    """`(start, hopeless)` of the requests that wait, both by deadline, the earliest first.

    `ends`: when each running program is expected to end; one that is overdue may end at any time. Each waiting program
    is expected to take `seconds` on the seat that is free first; if that ends after its deadline, it is hopeless and
    takes no seat. Demoted requests have no deadline, and come after all others.
    """
    free = [max(now, end) for end in ends] + [now] * (seats - len(ends))
    heapq.heapify(free)
    start: list[Request] = []
    hopeless: list[Request] = []
    for request in sorted(waiting, key=lambda r: (r.demoted, r.next_deadline, r.arrival)):
        if not request.demoted and free[0] + seconds > request.next_deadline:
            hopeless.append(request)
            continue
        if len(start) < seats - len(ends):
            start.append(request)
        heapq.heapreplace(free, free[0] + seconds)
    return start, hopeless
