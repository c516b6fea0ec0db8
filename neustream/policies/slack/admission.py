"""Puts together one prefill, so that every promise stays kept by the forecast."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from neustream.latency import LatencyModel, Shape
from neustream.plan import Limits
from neustream.policies.slack.forecast import DecodeForecast, Member
from neustream.request import Request
from neustream.route import DECODE, PREFILL

MAX_MISSES = 3
"""After this many requests that did not fit, the others are not tried any more."""
SPARE = 0.8
"""How much fuller the device could be, as a share of what runs, where a late request is taken."""
MAX_LATE = 8
"""Late requests that are tried in one step."""


class Candidate(NamedTuple):
    """A waiting request."""

    request: Request
    pending: int
    laxity: float
    """Seconds by which its prefill could start later and still be in time; negative: it is late."""
    left: int
    """Units still to come, by the forecast."""

    def catches_up(self, first_end: float, step: float, forgiven: float) -> bool:
        """Whether, after its next unit at `first_end`, steps of `step` seconds bring it back in time.

        It has to be before more than the share `forgiven` of what is still to come is late.
        """
        request = self.request
        units = request.units + request.in_flight
        ahead = max(int(forgiven * self.left), 1)
        return first_end + ahead * step <= request.deadlines.at(units + 1 + ahead)


class Residents(NamedTuple):
    """The running requests, and what they still ask for."""

    members: Sequence[Member]
    shape: Shape
    promised: float
    """Earliest next deadline of those that were never late."""
    caught_up: Sequence[float]
    """Next deadlines, in order, of those that were late once and whose next unit can be in time again."""


class Cut(NamedTuple):
    """What a prefill of some requests adds up to."""

    shape: Shape = Shape(0)
    blocks: int = 0
    first_due: float = math.inf
    """Earliest deadline of their first units, and of their second ones."""
    second_due: float = math.inf

    def plus(self, candidate: Candidate, limits: Limits, is_late: bool) -> Cut:
        """With one more; nobody waits for the deadlines of a late one."""
        request, pending, _, left = candidate
        batch, work, squares, context = self.shape
        width = request.width
        units = request.units + request.in_flight
        shape = Shape(
            batch + width, work + pending, squares + pending * pending, context + (request.size + units) * width
        )
        blocks = self.blocks + limits.blocks(pending)
        if is_late:
            return Cut(shape, blocks, self.first_due, self.second_due)
        first_due, second_due = self.first_due, self.second_due
        if request.next_deadline < first_due:
            first_due = request.next_deadline
        if left > 1:
            second = request.deadlines.at(units + 2)
            if second < second_due:
                second_due = second
        return Cut(shape, blocks, first_due, second_due)


class Admission:
    """One prefill under construction; `chosen` are the requests that are in it."""

    def __init__(
        self, now: float, residents: Residents, limits: Limits, prefill: LatencyModel, forecast: DecodeForecast
    ) -> None:
        self.now = now
        self.residents = residents
        self.limits = limits
        self.prefill = prefill
        self.prefill_drift = limits.drift.get(PREFILL, 1.0)
        self.decode_drift = limits.drift.get(DECODE, 1.0)
        self.forecast = forecast
        self.seats = limits.max_resident - residents.shape.batch
        self.blocks = limits.free_blocks - limits.spare_blocks
        self.chosen: list[Request] = []
        self.num_late = 0
        self._cut = Cut()
        self._added: list[Member] = []

    def add_overdue(self, candidates: Sequence[Candidate]) -> bool:
        """Add these, whatever becomes of the promises; returns whether there was room for all of them."""
        for candidate in candidates:
            cut = self._cut.plus(candidate, self.limits, True)
            if not self._has_room(cut, not self.chosen):
                return False
            self.chosen.append(candidate.request)
            self._cut = cut
            left, context, width, _ = _member(candidate)
            self._added.append((left, context, width, math.inf))
        return True

    def add_in_time(self, candidates: Sequence[Candidate]) -> None:
        """Add the longest run from the front that fits, then whoever of the next few fits as well.

        Each one more makes every condition harder, so that a binary search finds the end of the run.
        """
        cuts = [self._cut]
        for candidate in candidates:
            cut = cuts[-1].plus(candidate, self.limits, False)
            if not self._has_room(cut, not self.chosen and len(cuts) == 1):
                break
            cuts.append(cut)
        low, high = 0, len(cuts) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._end(cuts[middle]) is not None else (low, middle - 1)
        members = [_member(candidate) for candidate in candidates[:low]]
        low, high = 0, low
        while low < high:
            middle = high if low == 0 and high == len(members) else (low + high + 1) // 2
            is_kept = self._is_kept(cuts[middle], self._added + members[:middle])
            low, high = (middle, high) if is_kept else (low, middle - 1)
        self.chosen += [candidate.request for candidate in candidates[:low]]
        self._cut = cuts[low]
        self._added += members[:low]
        for candidate in candidates[low + 1 : low + 1 + MAX_MISSES]:
            self._try_add(candidate)

    def add_late(self, candidates: Sequence[Candidate], forgiven: float) -> None:
        """Add late ones, each only where it would catch up, and no promise be broken were the device `SPARE` fuller.

        That leaves room for those who come next and can still be in time.
        """
        misses = 0
        for candidate in candidates[:MAX_LATE]:
            if not self._try_add(candidate, forgiven):
                misses += 1
                if misses >= MAX_MISSES:
                    return

    def add_anyway(self, candidate: Candidate) -> None:
        """Add it if the device can hold it, whatever becomes of the promises."""
        if self._has_room(self._cut.plus(candidate, self.limits, True), not self.chosen):
            self.chosen.append(candidate.request)

    def _try_add(self, candidate: Candidate, forgiven: float | None = None) -> bool:
        is_late = forgiven is not None
        cut = self._cut.plus(candidate, self.limits, is_late)
        if not self._has_room(cut, not self.chosen):
            return False
        reserve = max(int(SPARE * self.residents.shape.batch), 1) if is_late else 0
        ends = self._end(cut, reserve)
        if ends is None:
            return False
        if forgiven is not None and not candidate.catches_up(ends[0], ends[1] - ends[0], forgiven):
            return False
        member = _member(candidate)
        added = [*self._added, member]
        left, context, width, last_due = member
        spare = [(left, context * reserve // width, reserve, last_due)] if reserve else []
        if not self._is_kept(cut, added + spare):
            return False
        self.chosen.append(candidate.request)
        self.num_late += is_late
        self._cut, self._added = cut, added
        return True

    def _has_room(self, cut: Cut, is_first: bool) -> bool:
        """Whether the device can hold the prefill; the first request may be longer than a step's work."""
        shape = cut.shape
        fits = shape.work <= self.limits.max_work or is_first
        return fits and shape.batch <= self.seats and cut.blocks <= self.blocks

    def _end(self, cut: Cut, reserve: int = 0) -> tuple[float, float] | None:
        """When the prefill and the decode step after it end; None where that is too late for somebody.

        With a `reserve` of seats that count as taken, the prefill is one with late requests. As many of those
        that caught up may fall behind for it again: each step of waiting costs a late one as much as such a
        prefill costs one of them. For a promise, all of them may have to.
        """
        residents, shape = self.residents, cut.shape
        end = self.now + self.prefill.predict(shape) * self.prefill_drift
        if end > cut.first_due:
            return None
        seats = shape.batch + reserve
        context = shape.context + shape.batch + reserve * shape.context // max(shape.batch, 1)
        after = Shape(residents.shape.batch + seats, 0, 0, residents.shape.context + context)
        next_end = end + self.forecast.step(after) * self.decode_drift
        if next_end > cut.second_due or next_end > residents.promised:
            return None
        num_pushed = bisect_left(residents.caught_up, next_end)
        if reserve and num_pushed > self.num_late + 1:
            return None
        return end, next_end

    def _is_kept(self, cut: Cut, added: Sequence[Member]) -> bool:
        """Whether everybody gets the last unit in time, by the forecast."""
        end = self.now + self.prefill.predict(cut.shape) * self.prefill_drift
        return self.forecast.holds(end, self.residents.members, added, self.limits, self.decode_drift)


def _member(candidate: Candidate) -> Member:
    """The candidate once its prefill is done."""
    request = candidate.request
    units = request.units + request.in_flight
    left = candidate.left - 1
    context = (request.size + units + 1) * request.width
    return left, context, request.width, request.deadlines.at(units + 1 + left)
