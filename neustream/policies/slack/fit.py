"""Whether a set of requests in one loop can all make it, by the loop's latency curve; and in which batch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neustream.policies.slack.schedules import Floats, meets_in_turns, meets_together

Places = NDArray[np.intp]
"""Indices of requests."""

TURN_RATE = 0.9
"""Turns are taken in batches that do at least this share of what the best batch does per second."""
RESERVE = 0.1
"""The share of a request's slack that is never planned with where a full batch costs next to nothing more than one.

It is room for those who come next: they make the steps of all others longer. Where a batch spares nothing, they cost
the others so much that there is no room to be left for them.
"""
LEAST_RESERVE = 0.02
"""The share that is not planned with on any device."""
TINY = 1e-300
CERTAIN = 1.0 + 1e-8
"""By how much a bound has to be exceeded, so that rounding cannot have done it."""


class Needs(NamedTuple):
    """What requests still need of a loop, an entry for each; all of shape (requests,)."""

    steps: Floats
    """Visits of the loop that are left."""
    margins: Floats
    """Seconds from now until the last visit must be over."""
    tails: Floats
    """Seconds that the other modules take from the loop."""

    @classmethod
    def made(cls, steps: Iterable[float], margins: Iterable[float], tails: Iterable[float]) -> Needs:
        """From numbers that are no arrays yet."""
        return cls(*(np.array(numbers, dtype=np.float64) for numbers in (steps, margins, tails)))

    def of(self, places: Places | NDArray[np.bool_] | slice) -> Needs:
        """Those of the requests at these places."""
        return Needs(self.steps[places], self.margins[places], self.tails[places])


def ranks(needs: Needs, visits: Floats) -> Floats:
    """Who goes first where not all can be kept: whoever costs the others least; highest first.

    `visits` is what each needed of the loop in all. The faster its steps have to be, the smaller are all batches that
    it is in; the fewer it has left, the sooner its place is free again. The root because it costs something only if
    somebody waits for that place.
    """
    steps = needs.steps
    return np.asarray(needs.margins / steps * np.sqrt(visits / steps))


class FluidFit:
    """Two sufficient schedules, both in closed form: everybody in every step, and taking turns.

    `seconds[b]` is the duration of a step with b requests, never falling; no step holds more than `largest`.
    """

    def __init__(self, seconds: Sequence[float], largest: int) -> None:
        self.seconds = seconds
        self.largest = largest
        self.curve = np.asarray(seconds)
        self.best = best_sizes(seconds)
        self.rates = [0.0, *(batch / seconds[batch] for batch in range(1, len(seconds)))]
        self.best_at, self.rates_at = np.asarray(self.best), np.asarray(self.rates)
        share = self.rates[1] / self.rates[self.best[min(largest, len(seconds) - 1)]]
        """What a request costs in the best batch, of what it costs alone."""
        self.reserve = max(RESERVE * (1.0 - share), LEAST_RESERVE)
        """The share of a request's slack that is never planned with."""
        self._most = np.arange(0)
        self._full = self._enough = np.zeros(0)

    def all_at_ease(self, needs: Needs) -> bool:
        """Whether all are in time even if the batch never shrinks: quickly told, and mostly the case."""
        count = len(needs.steps)
        if count > self.largest:
            return False
        ends = needs.steps * self.seconds[count]
        ends += needs.tails.sum()
        return not np.count_nonzero(ends > needs.margins)

    def all_fit(self, needs: Needs) -> bool:
        """Whether one of the two schedules is predicted to finish all within their margins."""
        count = len(needs.steps)
        if not count:
            return True
        # By either schedule: no batch does more per second than the best, and the last may leave its tail for later.
        best = self.rates[self.best[min(count, self.largest)]]
        least = needs.steps.sum() / best + needs.tails.sum() - needs.tails.max()
        if least > needs.margins.max() * CERTAIN:
            return False
        return self._together(needs) or self._in_turns(needs)

    def batch(self, needs: Needs) -> Places | None:
        """The next step's batch of those who fit: None for all of them if that works out, else those with least laxity.

        Where a smaller batch does more in the same time, they take turns in that even if all could run.
        """
        is_best = self.is_best(len(needs.steps))
        if is_best and self.all_at_ease(needs):
            return None
        if (is_best or not self._in_turns(needs)) and self._together(needs):
            return None
        size = max(self.turn_size(needs), 1)
        laxities = needs.margins - needs.steps * self.seconds[size]
        return laxities.argsort(kind="stable")[:size]

    def is_best(self, count: int) -> bool:
        """Whether no smaller batch does more per second than one of `count`, which a step can hold."""
        return count <= self.largest and self.best[count] == count

    def turn_size(self, needs: Needs) -> int:
        """The batch that does most per second among those whose step is no longer than the tightest pace.

        0 if the tightest fits in none, or where there is nobody.
        """
        return self._size(len(needs.steps), float((needs.margins / needs.steps).min())) if len(needs.steps) else 0

    def turns(self, count: int, tightest: float) -> int:
        """The batch in which `count` may take turns, by their tightest pace; 0 if that would waste the device."""
        size = self._size(count, tightest)
        return size if self.rates[size] >= TURN_RATE * self.rates[self.best[min(count, self.largest)]] else 0

    def by_count(self, count: int) -> tuple[Places, Floats, Floats]:
        """For 1…`count` requests: the largest batch, the best rate of any, and the least that is no waste."""
        if count > len(self._most):
            self._most = np.minimum(np.arange(1, 2 * count + 1), self.largest)
            self._full = self.rates_at[self.best_at[self._most]]
            self._enough = TURN_RATE * self._full
        return self._most[:count], self._full[:count], self._enough[:count]

    def _size(self, count: int, tightest: float) -> int:
        return self.best[bisect_right(self.seconds, tightest, 1, min(count, self.largest) + 1) - 1]

    def _together(self, needs: Needs) -> bool:
        if len(needs.steps) > self.largest:
            return False
        return meets_together(*needs.of(needs.steps.argsort(kind="stable")), self.curve)

    def _in_turns(self, needs: Needs) -> bool:
        steps, margins, tails = needs
        size = self.turns(len(steps), float((margins / steps).min()))
        if not size:
            return False
        order = margins.argsort(kind="stable")
        return meets_in_turns(margins[order], tails[order], margins - steps * self.seconds[size], size)


class Line:
    """Requests in the order in which they are to be kept: which of them can be.

    What all answers need, such as the orders by steps and by margin, is made once.
    """

    def __init__(self, fit: FluidFit, needs: Needs) -> None:
        self._fit = fit
        self._steps, self._margins, self._tails = steps, margins, tails = needs
        self._paces = margins / steps
        most, full, enough = fit.by_count(len(steps))
        self._tightest = np.minimum.accumulate(self._paces)
        sizes = fit.best_at[np.minimum(fit.curve[1:].searchsorted(self._tightest, "right"), most)]
        turns = sizes * (fit.rates_at[sizes] >= enough)
        # As in `FluidFit.all_fit`, of all runs at once; those that exceed a batch can only take turns.
        rates = full.copy()
        rates[fit.largest :] = np.maximum(fit.rates_at[turns[fit.largest :]], TINY)
        least = steps.cumsum() / rates + tails.cumsum() - np.maximum.accumulate(tails)
        in_reach = least <= np.maximum.accumulate(margins) * CERTAIN
        out_of_reach = np.flatnonzero(~in_reach)
        self._most = int(out_of_reach[0]) if len(out_of_reach) else len(steps)
        """No longer run fits."""
        self._sizes: list[int] = turns.tolist()
        by_steps, by_margin = steps.argsort(kind="stable"), margins.argsort(kind="stable")
        self._by_steps = by_steps, steps[by_steps], margins[by_steps], tails[by_steps]
        self._by_margin = by_margin, margins[by_margin], tails[by_margin]

    def keep(self, guess: int, chances: int) -> tuple[Places, int]:
        """The longest run from the front that fits, and whoever of the next `chances` fits as well.

        Also how many from the front that looked at. `guess` is the length to try first.
        """
        run = self._longest_run(guess)
        is_kept = np.zeros(len(self._steps), dtype=np.bool_)
        is_kept[:run] = True
        count = run
        tightest = float(self._tightest[run - 1]) if run else inf
        tried = run + 1 + chances
        for place in range(run + 1, min(tried, len(self._steps))):
            is_kept[place] = True
            pace = min(tightest, float(self._paces[place]))
            if self._fits(is_kept, count + 1, self._fit.turns(count + 1, pace)):
                count, tightest = count + 1, pace
            else:
                is_kept[place] = False
        return np.flatnonzero(is_kept), tried

    def _longest_run(self, guess: int) -> int:
        """How many, taken from the front, fit. One more never makes it easier.

        `guess` is tried first and then one more, which mostly settles it. Else the bound is close: from there down, in
        ever longer strides until one fits, then by halves.
        """
        low, high = 0, self._most  # so many fit, and no more than so many
        for count in (guess, guess + 1):
            if low < count <= high:
                low, high = (count, high) if self._run_fits(count) else (low, count - 1)
        stride, middle = 1, high
        while low < high:
            fits = self._run_fits(middle)
            low, high = (middle, high) if fits else (low, middle - 1)
            if fits or not stride:
                stride, middle = 0, (low + high + 1) // 2
            else:
                middle = max(high - stride, low + 1)
                stride *= 2
        return low

    def _run_fits(self, count: int) -> bool:
        is_kept = np.zeros(len(self._steps), dtype=np.bool_)
        is_kept[:count] = True
        return self._fits(is_kept, count, self._sizes[count - 1])

    def _fits(self, is_kept: NDArray[np.bool_], count: int, size: int) -> bool:
        """Whether those `count` fit, in turns of `size`: what `FluidFit.all_fit` says of them."""
        if count <= self._fit.largest:
            order, steps, margins, tails = self._by_steps
            chosen = is_kept[order].nonzero()[0]
            if meets_together(steps[chosen], margins[chosen], tails[chosen], self._fit.curve):
                return True
        if not size:
            return False
        order, margins, tails = self._by_margin
        chosen = is_kept[order].nonzero()[0]
        latest = self._margins[is_kept] - self._steps[is_kept] * self._fit.seconds[size]
        return meets_in_turns(margins[chosen], tails[chosen], latest, size)


def best_sizes(seconds: Sequence[float]) -> list[int]:
    """For each b, the batch of at most b that does most per second, the larger of equals; entry 0 is 0."""
    best = [0]
    for batch in range(1, len(seconds)):
        known = best[-1]
        is_better = not known or batch * seconds[known] >= known * seconds[batch]
        best.append(batch if is_better else known)
    return best
