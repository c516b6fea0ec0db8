"""slack, for language models whose steps may mix: pieces of prompts as large as pays and no promise forbids.

docs/slack.md explains the rule and shows what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from operator import attrgetter, itemgetter
from typing import NamedTuple

from neustream.cost import StepPrice, step_sums
from neustream.latency import Shape
from neustream.plan import Limits, Rejection, StepPlan
from neustream.policies.mixed_step import MixedStep, own_due
from neustream.policies.slack.demand import Demand, accept
from neustream.policies.slack.forecast import DecodeForecast, LengthForecast, Member
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

RESERVE = 0.05
"""Share of the time until the next deadline that no step is planned into."""
MARGIN = 1.15
"""How many times as long as by the table the accepted prompts may take."""
FORGIVEN = 0.1
"""Share of its output that a late request may have late and still be worth starting, or going on with."""
LATE_SHARE = 0.3
"""How much longer than its decodes a step may take where pieces are of prompts that cannot be in time."""
BY_LENGTH = 0.002
"""Seconds per prompt token that deadlines count as later by, in the second order that is tried."""
PAYS = 1.01
"""How much more a step has to get through per second to be taken for a larger one; fewer steps cost the host less."""
MOST_NEW = 8
"""Prompts that may begin in one step."""


class Running(NamedTuple):
    """What the running requests ask for."""

    due: float
    """Earliest next deadline of those that are in time."""
    pace: float
    """Least seconds per unit that any of them was promised."""
    members: list[Member]
    hopeless: list[Request]
    """Those that are late and cannot catch up."""


class Waiting(NamedTuple):
    """The waiting requests by what can still become of them."""

    overdue: list[Request]
    """Preempted ones that have waited as long as the rest of them would take alone, longest wait first."""
    in_time: list[Request]
    late: list[Request]
    """Those that are late but can catch up, or were preempted; least late first."""
    rejected: list[Rejection]


class SlackMixed:
    """Decodes everybody in every step; pieces join by `plan`. A request that was never late is a promise."""

    def __init__(self, table: LatencyTable, *, own_pace: bool, fairness: float) -> None:
        self.price = StepPrice(table)
        self.prefill = table[PREFILL]
        self.forecast = DecodeForecast(table[DECODE])
        self.own_pace = own_pace
        self.fairness = fairness
        grid = getattr(self.prefill, "tokens", ())
        self._sizes = sorted({*grid, 64, 128, 256, 512, 1024, 2048})
        """Tokens of a step at which its seconds per token may have a low."""

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        """All decodes, and pieces of prompts beside them.

        1. Of the prompts that could be in time, those are accepted that all can be (`accept`), in order of deadline.
        2. The step may last until the next deadline of a promise, less `RESERVE`. Of the sizes that are no longer, it
           takes the one with the most tokens per second.
        3. Where nobody is accepted, the others come, in steps at most `LATE_SHARE` longer than without them.
        4. A running request that cannot catch up is given up where somebody waits who could be in time.
        """
        waiting = streams[PREFILL]
        running: Collection[Request] = streams[DECODE]
        step = MixedStep(self.price, streams, limits, running)
        if not waiting:
            return step.plan()
        lengths = LengthForecast(limits)
        alone = step.seconds if running else 0.0
        asked = self._running(now, running, alone, lengths)
        sorted_out = self._triage(now, waiting, alone, limits, lengths)
        rejected = sorted_out.rejected
        if asked.hopeless and sorted_out.in_time:
            rejected += [Rejection(r, "late, cannot catch up, and others could be in time") for r in asked.hopeless]
            gone = {request.request_id for request in asked.hopeless}
            running = [request for request in running if request.request_id not in gone]
            step = MixedStep(self.price, streams, limits, running)
            alone = step.seconds if running else 0.0
        accepted = self._accepted(now, step, asked, sorted_out.in_time, limits)
        first = sorted_out.overdue + accepted
        allowed = (asked.due - now) * (1.0 - RESERVE) if running else math.inf
        if first:
            queue = self._with_memory(now, asked, first, limits, lengths)
            step.fill(queue, self._best(step, allowed, sum([request.pending for request in queue])), allowed)
        else:
            names = {request.request_id for request in accepted}
            rest = [request for request in sorted_out.in_time if request.request_id not in names]
            queue = self._with_memory(now, asked, sorted_out.late + rest, limits, lengths)
            step.fill(queue, math.inf, min(allowed, alone * (1.0 + LATE_SHARE)) if running else math.inf)
        if not step.batch and not step.pieces:
            step.fill([*first, *sorted_out.late, *sorted_out.in_time], math.inf)
        return step.plan(rejected)

    def has_urgent(self, now: float, streams: Streams, limits: Limits) -> bool:
        """Whether a waiting prompt would be in time by a prefill alone, and would not by a piece beside all decodes."""
        step = MixedStep(self.price, streams, limits, streams[DECODE])
        slowness = limits.drift.get(PREFILL, 1.0)
        return any(
            now + self.prefill.alone(request.pending) * slowness
            <= request.next_deadline
            < now + step.seconds_with(request.pending)
            for request in streams[PREFILL]
            if request.units_on_time == request.units
        )

    def is_better_alone(self, now: float, streams: Streams, limits: Limits, plan: StepPlan) -> bool:
        """Whether this prefill brings somebody a first token in time whom a piece beside all decodes would not.

        It must leave everybody who runs the next unit in time, a decode step later.
        """
        step = MixedStep(self.price, streams, limits, streams[DECODE])
        if not any(now + step.seconds_with(request.pending) > request.next_deadline for request in plan.batch):
            return False
        asked = self._running(now, streams[DECODE], step.seconds, LengthForecast(limits))
        seconds = self.price.of(step_sums(plan)) * limits.drift.get(PREFILL, 1.0)
        return now + seconds + step.seconds <= asked.due

    def _running(self, now: float, running: Collection[Request], alone: float, lengths: LengthForecast) -> Running:
        due = pace = math.inf
        members: list[Member] = []
        hopeless: list[Request] = []
        for request in running:
            left = lengths.units_left(request) if lengths else request.left[request.stage]
            units = request.units
            planned = units + request.in_flight
            next_due, last_due = request.next_deadline, math.inf
            own = request.deadlines.pace
            if own is not None and own < pace:
                pace = own
            if request.units_on_time == units and next_due >= now:
                last_due = request.deadlines.at(planned + left)
                if self.own_pace:
                    mine = own_due(request)
                    if mine >= now + alone:
                        next_due = mine
                if next_due < due:
                    due = next_due
            elif not self._catches_up(request, now, left, alone):
                hopeless.append(request)
                continue
            members.append((left, (request.size + planned) * request.width, request.width, last_due))
        return Running(due, pace, members, hopeless)

    def _catches_up(self, request: Request, first_end: float, left: int, step: float) -> bool:
        """Whether steps of `step` seconds bring it back in time before `FORGIVEN` of what is left has come late."""
        ahead = max(int(FORGIVEN * left), 1)
        return first_end + ahead * step <= request.deadlines.at(request.units + request.in_flight + 1 + ahead)

    def _triage(
        self, now: float, waiting: Collection[Request], step: float, limits: Limits, lengths: LengthForecast
    ) -> Waiting:
        overdue: list[tuple[float, Request]] = []
        in_time: list[Request] = []
        late: list[tuple[float, Request]] = []
        rejected: list[Rejection] = []
        slowness = limits.drift.get(PREFILL, 1.0)
        step = max(step, self.forecast.step(Shape(1)))
        for request in waiting:
            alone = self.prefill.alone(request.pending) * slowness
            laxity = request.next_deadline - now - alone
            is_in_time = laxity >= 0.0 and request.units_on_time == request.units
            if is_in_time and not request.units:
                in_time.append(request)
                continue
            left = lengths.units_left(request) if lengths else sum(request.left)
            if request.units and now >= (request.last_unit_at or 0.0) + alone + (left - 1) * step:
                overdue.append((request.last_unit_at or 0.0, request))
            elif is_in_time:
                in_time.append(request)
            elif request.units or self._catches_up(request, now + alone, left, step):
                late.append((-laxity, request))
            else:
                due = request.next_deadline - now
                reason = f"first unit due in {due:.3f} s, {PREFILL} alone takes {alone:.3f} s: too late to catch up"
                rejected.append(Rejection(request, reason))
        overdue.sort(key=itemgetter(0))
        late.sort(key=itemgetter(0))
        return Waiting([r for _, r in overdue], in_time, [r for _, r in late], rejected)

    def _accepted(
        self, now: float, step: MixedStep, asked: Running, waiting: Sequence[Request], limits: Limits
    ) -> list[Request]:
        """Those whose first tokens can all be in time; of two orders, the one that finds more."""
        if not waiting:
            return []
        demand = Demand(step, waiting, limits, lead=asked.due - now, pace=asked.pace, reserve=RESERVE)
        by_due = accept(now, sorted(waiting, key=attrgetter("next_deadline")), demand, MARGIN, self.fairness)
        if len(by_due) == len(waiting):
            return by_due
        order = sorted(waiting, key=lambda request: request.next_deadline + BY_LENGTH * request.pending)
        by_length = accept(now, order, demand, MARGIN, self.fairness)
        return by_length if len(by_length) > len(by_due) else by_due

    def _best(self, step: MixedStep, allowed: float, most: int) -> int:
        """Tokens of pieces, at most `most`, with which the step gets through most of them per second."""
        largest = step.largest(allowed, most)
        if largest <= 0:
            return 0
        best, rate = largest, largest / step.seconds_with(largest)
        for size in self._sizes:
            tokens = size - step.sums.decodes
            if tokens >= largest:
                break
            if tokens > 0 and tokens > PAYS * rate * step.seconds_with(tokens):
                best, rate = tokens, tokens / step.seconds_with(tokens)
        return best

    def _with_memory(
        self, now: float, asked: Running, queue: Sequence[Request], limits: Limits, lengths: LengthForecast
    ) -> list[Request]:
        """The longest front of the queue for whose outputs there is memory by the forecast, promises kept."""
        drift = limits.drift.get(DECODE, 1.0)
        begun = [request for request in queue if request.is_resident]
        new = [request for request in queue if not request.is_resident][:MOST_NEW]
        base = [*asked.members, *(_member(request, lengths) for request in begun)]
        added = [_member(request, lengths) for request in new]
        low, high = 0, len(new)
        while low < high:
            middle = high if low == 0 and high == len(new) else (low + high + 1) // 2
            is_kept = self.forecast.holds(now, base, added[:middle], limits, drift)
            low, high = (middle, high) if is_kept else (low, middle - 1)
        kept = {request.request_id for request in new[:low]}
        return [request for request in queue if request.is_resident or request.request_id in kept]


def _member(request: Request, lengths: LengthForecast) -> Member:
    """The request once its prompt is done; its own deadlines are not asked for here."""
    left = lengths.units_left(request) if lengths else sum(request.left)
    units = request.units + request.in_flight
    return left - 1, (request.size + units + 1) * request.width, request.width, math.inf
