"""A pool: one queue in front of the replicas that serve the same module.

A call is bound to a replica late: only when one has a free credit, and then to the one that is least busy. A credit is
room for one call that has not begun; a replica has a few, so that its own policy can choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

CREDITS = 4
"""Calls that may wait at a replica that has not begun them."""
Binding = Literal["late", "round_robin"]
"""When a call is bound to a replica: once one has a credit, or at once, to each in turn (the artifact's way)."""
WEIGHT = 1 / 16
"""What one completion counts for in the running mean of the service time."""


@dataclass(slots=True)
class Replica:
    """What the pool knows of one replica."""

    name: str
    credits: int = CREDITS
    """Calls that it takes before it has begun them."""
    waiting: set[str] = field(default_factory=set)
    """Calls that were sent and have not begun."""
    running: set[str] = field(default_factory=set)
    """Calls that have begun and have not ended."""
    is_open: bool = True
    """Whether it takes calls: not while it drains."""

    @property
    def num_free(self) -> int:
        """Calls that may be sent to it now."""
        return self.credits - len(self.waiting) if self.is_open else 0

    @property
    def calls(self) -> set[str]:
        """Every call that it has."""
        return self.waiting | self.running


class Pool:
    """One queue, several replicas. `rank` orders the waiting calls: the lowest is sent first."""

    def __init__(
        self, name: str, replicas: Iterable[Replica], rank: Callable[[str], float], binding: Binding = "late"
    ) -> None:
        self.name = name
        self.binding = binding
        self.replicas = {replica.name: replica for replica in replicas}
        self._rank = rank
        self.queue: dict[str, None] = {}
        self.seconds_per_call: float | None = None
        """Replica seconds between two completions while calls were waiting: a running mean, None before the first."""
        self._place: dict[str, str] = {}
        self._last_end: float | None = None
        self._turn = -1

    def __len__(self) -> int:
        """Calls that wait or run."""
        return len(self.queue) + len(self._place)

    @property
    def num_running(self) -> int:
        """Calls that have begun."""
        return sum(len(replica.running) for replica in self.replicas.values())

    @property
    def has_waiting(self) -> bool:
        """Whether a call waits, here or at a replica, so that a further one would come after it."""
        return bool(self.queue) or any(replica.waiting for replica in self.replicas.values())

    def add(self, call: str) -> None:
        """A call waits. Raises ValueError where it is there already."""
        if call in self.queue or call in self._place:
            raise ValueError(f"pool {self.name!r} has a call {call!r} already")
        self.queue[call] = None

    def send(self) -> list[tuple[str, str]]:
        """Bind as many waiting calls as may be bound now; returns `(call, replica)` in the order of sending."""
        sent = []
        while self.queue:
            replica = self._choose()
            if replica is None:
                break
            call = min(self.queue, key=self._rank)  # only now: mostly no replica has room, and a queue may be long
            del self.queue[call]
            replica.waiting.add(call)
            self._place[call] = replica.name
            sent.append((call, replica.name))
        return sent

    def _choose(self) -> Replica | None:
        """The replica that the next call goes to; None where all have as much as they may."""
        if self.binding == "round_robin":
            open_ones = [replica for replica in self.replicas.values() if replica.is_open]
            self._turn += 1
            return open_ones[self._turn % len(open_ones)] if open_ones else None
        free = [replica for replica in self.replicas.values() if replica.num_free > 0]
        return min(free, key=lambda replica: (len(replica.waiting) + len(replica.running), replica.name), default=None)

    def begun(self, call: str) -> None:
        """A replica has begun a call; its credit is free again."""
        replica = self._replica(call)
        if replica is not None and call in replica.waiting:
            replica.waiting.discard(call)
            replica.running.add(call)

    def ended(self, call: str, now: float) -> None:
        """A call has ended, or was withdrawn."""
        self.queue.pop(call, None)
        replica = self._replica(call)
        if replica is None:
            return
        was_running = call in replica.running
        replica.waiting.discard(call)
        replica.running.discard(call)
        del self._place[call]
        if not was_running:
            return
        is_busy = self.has_waiting
        if self._last_end is not None and is_busy:
            gap = (now - self._last_end) * max(sum(r.is_open for r in self.replicas.values()), 1)
            known = self.seconds_per_call
            self.seconds_per_call = gap if known is None else known + WEIGHT * (gap - known)
        self._last_end = now if is_busy else None

    def place(self, call: str) -> str | None:
        """The replica that has the call; None while it waits in the queue, or is not here."""
        return self._place.get(call)

    def lose(self, replica: str) -> list[str]:
        """A replica is gone; returns the calls that it had, which are nowhere now."""
        lost = self.replicas.pop(replica, None)
        calls = sorted(lost.calls) if lost is not None else []
        for call in calls:
            del self._place[call]
        return calls

    def gain(self, replica: Replica) -> None:
        """A replica has come. Raises ValueError where one of that name is there."""
        if replica.name in self.replicas:
            raise ValueError(f"pool {self.name!r} has a replica {replica.name!r} already")
        self.replicas[replica.name] = replica

    def wait(self, num_ahead: float) -> float:
        """Seconds until so many calls ahead have been taken in; 0 as long as no completion says how fast that goes."""
        if self.seconds_per_call is None:
            return 0.0
        return num_ahead * self.seconds_per_call / max(len(self.replicas), 1)

    def check_integrity(self) -> None:
        """Assert that every call is in one place."""
        placed = {call: name for name, replica in self.replicas.items() for call in replica.calls}
        assert placed == self._place, (placed, self._place)
        assert not set(self.queue) & set(self._place)
        for replica in self.replicas.values():
            assert not replica.waiting & replica.running

    def _replica(self, call: str) -> Replica | None:
        name = self._place.get(call)
        return self.replicas[name] if name is not None else None
