"""slack, for language models: prefill only what leaves every promise kept; late requests get what is left.

docs/slack.md explains the rule and shows what it gives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from neustream.cost import step_price
from neustream.latency import Shape
from neustream.plan import Limits, Rejection, StepPlan
from neustream.policies.base import USUAL, PolicyContext, is_true, not_negative
from neustream.policies.slack.admission import Admission, Candidate, Residents
from neustream.policies.slack.forecast import DecodeForecast, LengthForecast, Member
from neustream.policies.slack.mixed import SlackMixed
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

FORGIVEN = 0.3
"""Share of its output that a late request may have late and still be worth starting."""
MAX_MEMO = 1 << 14


class Triage(NamedTuple):
    """The waiting requests by what can still become of them."""

    overdue: list[Candidate]
    """Preempted requests that have waited too long (`_overdue_at`), longest wait first."""
    waiting: list[Candidate]
    """Those that can be in time, least laxity first."""
    late: list[Candidate]
    """Those that are late but can catch up, least late first."""
    rejected: tuple[Rejection, ...]


class SlackLlm:
    """Commits only to what can be kept: see `plan`. A request that was never late is a promise."""

    def __init__(
        self, table: LatencyTable, context: PolicyContext = USUAL, *, own_pace: bool = True, fairness: float = 0.0
    ) -> None:
        if not_negative("fairness", fairness) > 1.0:
            raise ValueError(f"fairness must be at most 1, got {fairness!r}")
        own_pace = is_true("own_pace", own_pace)
        """Whether no running request's lead is spent beyond one pace a unit from its first one. Mixed steps only."""
        self.mixed = SlackMixed(table, own_pace=own_pace, fairness=fairness) if step_price(table) else None
        self.prefill = table[PREFILL]
        self.forecast = DecodeForecast(table[DECODE])
        self._memo: dict[int, float] = {}

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        """On a device that can split prompts, what `SlackMixed` says, or a prefill alone where only that is in time.

        On others, prefill if that breaks no promise, else decode everybody:

        0. A preempted request is never rejected. Once it is overdue it comes before all others, whatever becomes of
           the promises; while the device has no room for it, nobody else is prefilled.
        1. Whoever could still be in time goes first, least laxity first, provided that every promise, its
           own included, is kept by the forecast: the next unit right after this prefill, the last one with
           all of them decoding side by side.
        2. Then those that are late already, least late first, where that leaves room for more promises, and
           where they catch up before `FORGIVEN` of their output has come late.
        """
        if limits.can_split and self.mixed is not None:
            if streams[DECODE] and self.mixed.has_urgent(now, streams, limits):
                plan = self._alone(now, streams, limits)
                if plan.module == PREFILL and self.mixed.is_better_alone(now, streams, limits, plan):
                    return plan
            return self.mixed.plan(now, streams, limits)
        return self._alone(now, streams, limits)

    def _alone(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        """A step that is a prefill or a decode: the rules of `plan`."""
        running = streams[DECODE]
        lengths = LengthForecast(limits)
        overdue, waiting, late, rejected = self._triage(now, streams, limits, lengths)
        if overdue or waiting or late:
            residents = self._residents(now, streams, limits, lengths)
            admission = Admission(now, residents, limits, self.prefill, self.forecast)
            if admission.add_overdue(overdue):
                admission.add_in_time(waiting)
                admission.add_late(late, FORGIVEN)
                if not admission.chosen and not running:
                    admission.add_anyway(waiting[0] if waiting else late[0])
            if admission.chosen:
                return StepPlan(PREFILL, tuple(admission.chosen), rejected)
        if running:
            return StepPlan(DECODE, tuple(running), rejected)
        return StepPlan(rejected=rejected)

    def _triage(self, now: float, streams: Streams, limits: Limits, lengths: LengthForecast) -> Triage:
        """Sort out the waiting. Preempted requests are never rejected: they have delivered units already."""
        overdue: list[Candidate] = []
        waiting: list[Candidate] = []
        late: list[Candidate] = []
        rejected: list[Rejection] = []
        slowness, decode_slowness = limits.drift.get(PREFILL, 1.0), limits.drift.get(DECODE, 1.0)
        base, slope = self.forecast.step(Shape(1)) * decode_slowness, self.forecast.slope * decode_slowness
        for request in streams[PREFILL]:
            pending = request.pending
            alone = self._prefill_alone(pending) * slowness
            laxity = request.next_deadline - now - alone
            left = lengths.units_left(request) if lengths else sum(request.left)
            candidate = Candidate(request, pending, laxity, left)
            if request.units and now >= _overdue_at(candidate, alone, base + slope * pending):
                overdue.append(candidate)
            elif laxity >= 0.0 and request.units_on_time == request.units:
                waiting.append(candidate)
            elif request.units or candidate.catches_up(now + alone, base + slope * pending, FORGIVEN):
                late.append(candidate)
            else:
                due = request.next_deadline - now
                reason = f"first unit due in {due:.3f} s, {PREFILL} alone takes {alone:.3f} s: too late to catch up"
                rejected.append(Rejection(request, reason))
        overdue.sort(key=lambda candidate: candidate.request.last_unit_at or 0.0)
        waiting.sort(key=lambda candidate: candidate.laxity)
        late.sort(key=lambda candidate: -candidate.laxity)
        return Triage(overdue, waiting, late, tuple(rejected))

    def _residents(self, now: float, streams: Streams, limits: Limits, lengths: LengthForecast) -> Residents:
        """What the running requests hold and ask for."""
        batch = context = 0
        promised = math.inf
        members: list[Member] = []
        late: list[tuple[Request, int, int]] = []
        for request in streams[DECODE]:
            width = request.width
            units = request.units
            planned = units + request.in_flight
            wide = (request.size + planned) * width
            batch += width
            context += wide
            left = lengths.units_left(request) if lengths else request.left[request.stage]
            due = request.next_deadline
            if request.units_on_time != units or due < now:
                late.append((request, left, wide))
                continue
            if due < promised:
                promised = due
            members.append((left, wide, width, request.deadlines.at(planned + left)))
        shape = Shape(batch, 0, 0, context)
        if not late:
            return Residents(members, shape, promised, ())
        next_end = now + self.forecast.step(shape) * limits.drift.get(DECODE, 1.0)
        caught_up: list[float] = []
        for request, left, wide in late:
            due, last_due = request.next_deadline, math.inf
            if due >= next_end:
                caught_up.append(due)
                last_due = request.deadlines.at(request.units + request.in_flight + left)
            members.append((left, wide, request.width, last_due))
        return Residents(members, shape, promised, sorted(caught_up))

    def _prefill_alone(self, pending: int) -> float:
        alone = self._memo.get(pending)
        if alone is None:
            if len(self._memo) >= MAX_MEMO:
                self._memo.clear()
            alone = self._memo[pending] = self.prefill.alone(pending)
        return alone


def _overdue_at(candidate: Candidate, alone: float, step: float) -> float:
    """When a preempted request has waited, since its last unit, for as long as the rest would take it alone."""
    last = candidate.request.last_unit_at
    assert last is not None
    return last + alone + (candidate.left - 1) * step
