"""neustream, LLM rule: at each step boundary, prefill as many as the running requests can afford, else decode."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate

from neustream.latency import Shape
from neustream.plan import Limits, Rejection, StepPlan
from neustream.policies.base import USUAL, PolicyContext, at_least, decode_shape, num_fitting
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

HORIZON = 30
"""Decode steps over which a request may earn credit (the paper's H)."""


class NeuStreamLlm:
    """Interleaves prefill and decode under per-token deadlines (NeuStream, EuroSys'25).

    The *credit* of a request is the slack that it is expected to earn over its next steps:
    `max(0, H − units) × (pace − last decode step)`. A request may be late by its credit and still catch up.
    One whose deadlines have no pace earns nothing, and owes nothing.

    Preempted requests go first and are never rejected. Nobody new is prefilled before them, so each is served at the
    latest when those that run have finished.
    """

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL, *, horizon: int = HORIZON) -> None:
        self.prefill = table[PREFILL]
        self.decode = table[DECODE]
        self.horizon = at_least("horizon", horizon, 0)

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        running = streams[DECODE]
        shape = decode_shape(running)
        step = limits.last_seconds.get(DECODE)
        if step is None:
            step = self.decode.predict(shape if running else Shape())
        waiting, rejected = self._triage(now, streams, step)
        waiting.sort(key=lambda request: (request.units == 0, request.size))
        count = num_fitting(waiting, shape.batch, limits)
        if count and running:
            count = self._affordable(now, waiting[:count], shape, min(self._dues(now, running, step)), step)
        if count:
            return StepPlan(PREFILL, tuple(waiting[:count]), tuple(rejected))
        if running:
            return StepPlan(DECODE, tuple(running), tuple(rejected))
        return StepPlan(rejected=tuple(rejected))

    def _credit(self, request: Request, step: float) -> float:
        pace = request.deadlines.pace
        ahead = self.horizon - request.units
        return ahead * (pace - step) if ahead > 0 and pace is not None else 0.0

    def _dues(self, now: float, requests: Iterable[Request], step: float) -> list[float]:
        """The next deadline of each plus its credit: the times that a prefill must keep.

        A request that was preempted and whose next deadline is past sets none, waiting or running: its deadlines
        cannot be kept, and would otherwise keep out all others until it has finished.
        """
        horizon = self.horizon
        dues = []
        for request in requests:
            due = request.next_deadline
            if due < now and request.num_preemptions:
                due = math.inf
            else:
                ahead = horizon - request.units
                if ahead > 0:  # `_credit`, without a call for each
                    pace = request.deadlines.pace
                    if pace is not None:
                        due += ahead * (pace - step)
            dues.append(due)
        return dues

    def _triage(self, now: float, streams: Streams, step: float) -> tuple[list[Request], list[Rejection]]:
        """Split the waiting into those worth keeping and those whose first unit cannot be in time even alone.

        Credit counts here only where it is positive: a slow device must not make a request look hopeless that
        could still be prefilled in time. A preempted request has delivered units; it is never rejected.
        """
        keep: list[Request] = []
        rejected: list[Rejection] = []
        for request in streams[PREFILL]:
            alone = self.prefill.alone(request.pending)
            due = request.next_deadline
            if due - now < alone and not request.units and due + max(self._credit(request, step), 0.0) - now < alone:
                reason = f"first unit due in {due - now:.3f} s, {PREFILL} alone takes {alone:.3f} s"
                rejected.append(Rejection(request, reason))
            else:
                keep.append(request)
        return keep, rejected

    def _affordable(self, now: float, waiting: list[Request], running: Shape, floor: float, step: float) -> int:
        """The largest m such that, with the first m prefilled now and one decode step of all after it, nobody is late.

        `floor` is the earliest of the `_dues` of the running. More requests cost more time and bring more deadlines, so
        feasibility falls with m and a binary search finds its edge.
        """
        sums = [(0, 0, 0, 0)]
        floors = [math.inf, *accumulate(self._dues(now, waiting, step), min)]
        seats = work = squares = context = 0
        for request in waiting:
            pending = request.pending
            width = request.width
            seats += width
            work += pending
            squares += pending * pending
            context += (request.size + request.units + request.in_flight) * width
            sums.append((seats, work, squares, context))
        low, high = 0, len(waiting)
        while low < high:
            middle = (low + high + 1) // 2
            seats, work, squares, context = sums[middle]
            prefilled = now + self.prefill.predict(Shape(seats, work, squares, context))
            decoded = prefilled + self.decode.predict(
                Shape(running.batch + seats, 0, 0, running.context + context + seats)
            )
            if decoded <= floor and prefilled <= floors[middle]:
                low = middle
            else:
                high = middle - 1
        return low
