"""The event queue of virtual time."""

from __future__ import annotations

import heapq
from enum import IntEnum
from typing import Generic, TypeVar

Event = TypeVar("Event")


class Priority(IntEnum):
    """What comes first among events of one instant: a step's end frees its process before anyone enters a
    stream, and everyone has entered before a process plans."""

    STEP_ENDS = 0
    ENTERS = 1
    PLANS = 2


class EventQueue(Generic[Event]):
    """Events in order of (time, priority, order of insertion); equal runs give equal orders."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Event]] = []
        self._sequence = 0

    def push(self, time: float, priority: Priority, event: Event) -> None:
        """Add an event at `time` (seconds)."""
        self._sequence += 1
        heapq.heappush(self._heap, (time, priority, self._sequence, event))

    def pop(self) -> tuple[float, Event]:
        """Take out the next `(time, event)`. Raises IndexError when there is none."""
        time, _, _, event = heapq.heappop(self._heap)
        return time, event

    @property
    def next_time(self) -> float | None:
        """When the next event is, in seconds; None when there is none."""
        return self._heap[0][0] if self._heap else None

    def __len__(self) -> int:
        return len(self._heap)
