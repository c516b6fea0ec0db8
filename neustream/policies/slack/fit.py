"""Whether a set of requests in one loop can all make it, by the loop's latency curve; and in which batch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neustream.request import Request

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
"""Indices of jobs."""

TURN_RATE = 0.9
"""Turns are taken in batches that do at least this share of what the best batch does per second."""


class Job(NamedTuple):
    """A request and what it still needs of a loop."""

    request: Request
    steps: int
    """Visits of the loop that it has left."""
    margin: float
    """Seconds from now until its last visit must be over."""
    tail: float
    """Seconds that its other modules take from the loop."""
    visits: int
    """Visits that it has in all."""

    @property
    def pace(self) -> float:
        """Seconds that each of its steps may take on average."""
        return self.margin / self.steps


def ranks(rows: Floats, visits: Floats) -> Floats:
    """Who goes first where not all can be kept: whoever costs the others least, by `rows_of` the jobs; highest first.

    The faster its steps have to be, the smaller are all batches that it is in; the fewer it has left, the sooner
    its place is free again. The root because it costs something only if somebody waits for that place.
    """
    steps, margins = rows[:, 0], rows[:, 1]
    return np.asarray(margins / steps * np.sqrt(visits / steps))


class FluidFit:
    """Two sufficient schedules, both in closed form: everybody in every step, and taking turns.

    `seconds[b]` is the duration of a step with b requests, never falling; no step holds more than `largest`.
    """

    def __init__(self, seconds: Sequence[float], largest: int) -> None:
        self.seconds = seconds
        self.largest = largest
        self._curve = np.asarray(seconds)
        self._best = best_sizes(seconds)
        self._rates = [0.0, *(batch / seconds[batch] for batch in range(1, len(seconds)))]

    def all_at_ease(self, jobs: Sequence[Job]) -> bool:
        """Whether every job is in time even if the batch never shrinks: quickly told, and mostly the case."""
        if len(jobs) > self.largest:
            return False
        step = self.seconds[len(jobs)]
        tails = sum([job[3] for job in jobs])
        return all(steps * step + tails <= margin for _, steps, margin, _, _ in jobs)

    def all_fit(self, jobs: Sequence[Job]) -> bool:
        """Whether one of the two schedules is predicted to finish every job within its margin."""
        return self.all_at_ease(jobs) or self.rows_fit(rows_of(jobs))

    def rows_fit(self, rows: Floats) -> bool:
        """The same of `rows_of` the jobs."""
        if not len(rows):
            return True
        steps, margins, tails = rows.T
        return self._together(steps, margins, tails) or self._in_turns(steps, margins, tails)

    def longest_run(self, rows: Floats, guess: int) -> int:
        """How many of `rows`, taken from the front, fit. One more never makes it easier.

        `guess` is tried first, then ever further from it: a good one takes two trials, a bad one log n.
        """
        low, high = 0, len(rows)  # so many fit, and no more than so many
        middle, stride = guess, 1
        answers = set()
        while low < high:
            middle = min(max(middle, low + 1), high)
            fits = self.rows_fit(rows[:middle])
            answers.add(fits)
            low, high = (middle, high) if fits else (low, middle - 1)
            if len(answers) == 2:
                middle = (low + high + 1) // 2
            else:
                middle = low + stride if fits else high - stride
                stride *= 2
        return low

    def batch(self, jobs: list[Job]) -> list[Job]:
        """The next step's batch of jobs that fit: all of them if that works out, else those with least laxity.

        Where a smaller batch does more in the same time, they take turns in that even if all could run.
        """
        count = len(jobs)
        is_best = count <= self.largest and self._best[count] == count
        if is_best and self.all_at_ease(jobs):
            return jobs
        steps, margins, tails = rows_of(jobs).T
        if (is_best or not self._in_turns(steps, margins, tails)) and self._together(steps, margins, tails):
            return jobs
        size = max(self._turn_size(steps, margins), 1)
        step = self.seconds[size]
        return sorted(jobs, key=lambda job: job.margin - job.steps * step)[:size]

    def turn_size(self, rows: Floats) -> int:
        """The batch in which jobs of these rows would take turns; 0 if the tightest fits in none, or without jobs."""
        return self._turn_size(rows[:, 0], rows[:, 1]) if len(rows) else 0

    def _turn_size(self, steps: Floats, margins: Floats) -> int:
        """The batch that does most per second among those whose step is no longer than the tightest pace."""
        most = min(len(steps), self.largest)
        return self._best[bisect_right(self.seconds, float((margins / steps).min()), 1, most + 1) - 1]

    def _together(self, steps: Floats, margins: Floats, tails: Floats) -> bool:
        """Everybody in every step: the batch shrinks, and steps get faster, as jobs finish, shortest first."""
        count = len(steps)
        if count > self.largest:
            return False
        order = steps.argsort(kind="stable")
        segments = steps[order]
        segments[1:] -= segments[:-1].copy()
        segments *= self._curve[count:0:-1]
        tail = tails[order]
        segments += tail
        ends = segments.cumsum()
        ends -= tail
        return bool((ends <= margins[order]).all())

    def _in_turns(self, steps: Floats, margins: Floats, tails: Floats) -> bool:
        """Batches of one size b, taken in turns by least laxity: b slots, as b processors with preemption.

        Up to a time t the jobs must receive the work whose deadline has come and the work that is too much
        for what remains afterwards: `Σ (t − latest start)⁺ − Σ (t − margin)⁺`, of which b slots do b·t.
        """
        size = self._turn_size(steps, margins)
        if size < 1 or self._rates[size] < TURN_RATE * self._rates[self._best[min(len(steps), self.largest)]]:
            return False
        order = margins.argsort(kind="stable")
        due = margins[order]
        latest = margins - steps * self.seconds[size]
        latest.sort()
        latest_sums = np.zeros(len(due) + 1)
        latest.cumsum(out=latest_sums[1:])
        num_late = latest.searchsorted(due)
        must = (num_late - _counts(len(due))) * due - latest_sums[num_late] + due.cumsum()
        tail = tails[order]
        return bool((must <= size * (due - tail.cumsum() + tail)).all())


@lru_cache(maxsize=1024)
def _counts(count: int) -> Floats:
    return np.arange(1.0, count + 1)


def rows_of(jobs: Sequence[Job]) -> Floats:
    """Steps, margins and tails; shape (jobs, 3)."""
    return np.array([job[1:4] for job in jobs], dtype=np.float64).reshape(-1, 3)


def best_sizes(seconds: Sequence[float]) -> list[int]:
    """For each b, the batch of at most b that does most per second, the larger of equals; entry 0 is 0."""
    best = [0]
    for batch in range(1, len(seconds)):
        known = best[-1]
        is_better = not known or batch * seconds[known] >= known * seconds[batch]
        best.append(batch if is_better else known)
    return best
