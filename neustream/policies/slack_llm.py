"""slack, for language models: prefill only what leaves every promise kept; late requests get what is left.

docs/slack.md explains the rule and shows what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from neustream.latency import Shape
from neustream.plan import Limits, Rejection, StepPlan
from neustream.policies.base import DECODE, PREFILL
from neustream.policies.slack_forecast import DecodeForecast, Member
from neustream.request import Request
from neustream.streams import Streams
from neustream.tables import LatencyTable

FORGIVEN = 0.2
"""Share of its output that a late request may have late and still be worth starting."""
RESERVE = 5
"""Requests of its own size that must fit beside a late request for it to be started."""
TRIES = 3
"""Requests that are tried after the first that did not fit."""


class Candidate(NamedTuple):
    """A waiting request."""

    request: Request
    pending: int
    alone: float
    """Seconds of its prefill on its own."""
    laxity: float
    """Seconds by which its prefill could start later and still be in time; negative: it is late."""


class Residents(NamedTuple):
    """The running requests, and what they still ask for."""

    members: list[Member]
    shape: Shape
    promised: float
    """Earliest next deadline of those that were never late."""
    on_time: float
    """Earliest next deadline of those whose next unit can be in time: the former, and late ones that caught up."""


class SlackLlm:
    """Commits only to what can be kept: see `plan`. A request that was never late is a promise."""

    def __init__(self, table: LatencyTable) -> None:
        self.prefill = table[PREFILL]
        self.forecast = DecodeForecast(table[DECODE])

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        """Prefill if that breaks no promise, else decode everybody.

        1. Whoever could still be in time goes first, least laxity first, each provided that every promise,
           its own included, is kept by the forecast: the next unit right after this prefill, the last one
           with all of them decoding side by side.
        2. Then those that are late already, least late first, where that leaves room for more promises and
           where they catch up before `FORGIVEN` of their output has come late.
        """
        waiting, late, rejected = self._triage(now, streams)
        running = streams[DECODE]
        if waiting or late:
            residents = self._residents(now, running)
            chosen = self._choose(now, waiting, late, residents, limits)
            if not chosen and not running and late:
                chosen = [late[0].request]
            if chosen:
                return StepPlan(PREFILL, tuple(chosen), rejected)
        if running:
            return StepPlan(DECODE, tuple(running), rejected)
        return StepPlan(rejected=rejected)

    def _triage(
        self, now: float, streams: Streams
    ) -> tuple[list[Candidate], list[Candidate], tuple[Rejection, ...]]:
        """Those that can be in time, least laxity first; the late, least late first; those past help."""
        waiting: list[Candidate] = []
        late: list[Candidate] = []
        rejected: list[Rejection] = []
        for request in streams[PREFILL]:
            pending = request.pending
            alone, _ = self.prefill.standalone(pending)
            candidate = Candidate(request, pending, alone, request.next_deadline - now - alone)
            if candidate.laxity >= 0.0 and request.units_on_time == request.units:
                waiting.append(candidate)
                continue
            step = self.forecast.step(Shape(1, context=pending))
            if request.units or self._catches_up(candidate, now + alone, step):
                late.append(candidate)
            else:
                due = request.next_deadline - now
                reason = f"first unit due in {due:.3f} s, {PREFILL} alone takes {alone:.3f} s; too late to catch up"
                rejected.append(Rejection(request, reason))
        waiting.sort(key=lambda candidate: candidate.laxity)
        late.sort(key=lambda candidate: -candidate.laxity)
        return waiting, late, tuple(rejected)

    def _residents(self, now: float, running: Iterable[Request]) -> Residents:
        members = []
        batch = context = 0
        promised = on_time = math.inf
        rows = []
        for request in running:
            wide = request.context * request.width
            batch += request.width
            context += wide
            rows.append((request, wide))
        shape = Shape(batch, 0, 0, context)
        next_end = now + self.forecast.step(shape) if rows else now
        for request, wide in rows:
            due = request.next_deadline
            protected = True
            if request.units_on_time == request.units and due >= now:
                promised = min(promised, due)
            elif due < next_end:
                protected = False
            on_time = min(on_time, due) if protected else on_time
            left = request.left[request.stage]
            last = request.deadlines.at(request.units + left) if protected else math.inf
            members.append(Member(left, wide, request.width, last))
        return Residents(members, shape, promised, on_time)

    def _choose(
        self, now: float, waiting: list[Candidate], late: list[Candidate], residents: Residents, limits: Limits
    ) -> list[Request]:
        admission = Admission(self, now, residents, limits)
        for candidates, is_late in ((waiting, False), (late, True)):
            misses = 0
            for candidate in candidates:
                if not admission.has_room(candidate):
                    break
                if not admission.try_add(candidate, is_late):
                    misses += 1
                    if misses > TRIES:
                        break
        return admission.kept()

    def _catches_up(self, candidate: Candidate, first_end: float, step: float) -> bool:
        """Whether steps of `step` seconds bring it back in time before too much of its output is late."""
        request = candidate.request
        ahead = max(int(FORGIVEN * (request.max_units - request.units)), 1)
        return first_end + ahead * step <= request.deadlines.at(request.units + 1 + ahead)


class Admission:
    """Puts together one prefill, request by request."""

    def __init__(self, policy: SlackLlm, now: float, residents: Residents, limits: Limits) -> None:
        self.policy = policy
        self.now = now
        self.residents = residents
        self.limits = limits
        self.seats = limits.max_resident - residents.shape.batch
        self.blocks = limits.free_blocks - limits.spare_blocks
        self.chosen: list[Request] = []
        self.added: list[Member] = []
        self.shape = Shape(0)
        self.first_due = math.inf
        """Earliest deadline of the chosen requests' first units, and of their second ones."""
        self.second_due = math.inf

    def has_room(self, candidate: Candidate) -> bool:
        """Whether the device can hold it beside the others; the first may be longer than a step's work."""
        request = candidate.request
        work = self.shape.work + candidate.pending
        return (
            self.seats >= self.shape.batch + request.width
            and self.blocks >= self.limits.blocks(candidate.pending)
            and (work <= self.limits.max_work or not self.chosen)
        )

    def try_add(self, candidate: Candidate, is_late: bool) -> bool:
        """Add it if all promises, by the forecast, are kept with it in. Says whether it was added."""
        request, pending = candidate.request, candidate.pending
        shape = Shape(
            self.shape.batch + request.width,
            self.shape.work + pending,
            self.shape.work_squared + pending * pending,
            self.shape.context + request.context * request.width,
        )
        end = self.now + self.policy.prefill.predict(shape)
        first_due, second_due = self.first_due, self.second_due
        if not is_late:
            first_due = min(first_due, request.next_deadline)
            second_due = min(second_due, request.deadlines.at(request.units + 2))
        if end > first_due:
            return False
        residents = self.residents
        batch = residents.shape.batch + shape.batch
        context = residents.shape.context + shape.context + shape.batch
        reserve = RESERVE * request.width if is_late else 0
        next_end = end + self.policy.forecast.step(Shape(batch + reserve, 0, 0, context + reserve * pending))
        if next_end > (residents.on_time if is_late else residents.promised) or next_end > second_due:
            return False
        if is_late and not self.policy._catches_up(candidate, end, next_end - end):
            return False
        left = request.max_units - request.units - 1
        last = request.deadlines.at(request.max_units)
        member = Member(left, (request.context + 1) * request.width, request.width, last)
        added = [*self.added, member]
        spare = [member] * RESERVE if is_late else []
        if not self.policy.forecast.holds(end, residents.members, added + spare, self.limits):
            return False
        self.chosen.append(request)
        self.added, self.shape, self.first_due, self.second_due = added, shape, first_due, second_due
        self.blocks -= self.limits.blocks(pending)
        return True

    def kept(self) -> list[Request]:
        """The requests of the prefill."""
        return self.chosen
