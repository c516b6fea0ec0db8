"""The rule inside a language model's replica as the NeuStream artifact's agents have it (`predictor.switch_P`).

It is here for comparisons only: `neustream` is the project's version of the paper's rule. The differences: credit is
one constant, running requests have none, nobody is given up while the device is idle, and a preempted request is given
up as any other. Requests that the artifact's code loses by mistake are kept.
"""

from __future__ import annotations

import math
from itertools import accumulate

from neustream.latency import Shape
from neustream.plan import Limits, Rejection, StepPlan
from neustream.policies.base import decode_shape, num_fitting
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

CREDIT_STEPS = 10
CREDIT_SECONDS = 0.016
"""Credit of a waiting request: so many steps × (SLO scale − 1) × this."""


class ArtifactLlm:
    """Prefills as many, shortest prompt first, as leave everybody's next token in time; else decodes."""

    def __init__(self, table: LatencyTable) -> None:
        self.prefill = table[PREFILL]
        self.decode = table[DECODE]

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        running, waiting = streams[DECODE], list(streams[PREFILL])
        rejected: list[Rejection] = []
        if not running:
            count = num_fitting(waiting, 0, limits)
            return StepPlan(PREFILL, tuple(waiting[:count])) if count else StepPlan()
        if waiting:
            waiting, rejected = self._triage(now, waiting)
            waiting.sort(key=lambda request: request.size)
            count = num_fitting(waiting, len(running), limits)
            count = self._affordable(now, waiting[:count], list(running))
            if count:
                return StepPlan(PREFILL, tuple(waiting[:count]), tuple(rejected))
        return StepPlan(DECODE, tuple(running), tuple(rejected))

    def _due(self, request: Request) -> float:
        """The next deadline of a waiting request, later by its credit."""
        pace = request.deadlines.pace
        if pace is None:
            return request.next_deadline
        scale = pace / self.decode.predict(Shape(1, 0, 0, request.size + 1))
        return request.next_deadline + CREDIT_STEPS * (scale - 1.0) * CREDIT_SECONDS

    def _triage(self, now: float, waiting: list[Request]) -> tuple[list[Request], list[Rejection]]:
        keep, rejected = [], []
        for request in waiting:
            left, alone = self._due(request) - now, self.prefill.alone(request.pending)
            if left < alone:
                rejected.append(Rejection(request, f"unit due in {left:.3f} s, {PREFILL} alone takes {alone:.3f} s"))
            else:
                keep.append(request)
        return keep, rejected

    def _affordable(self, now: float, waiting: list[Request], running: list[Request]) -> int:
        """The most that can be prefilled now so that it and one decode step of all after it keep every next deadline.

        The binary search is the artifact's: more requests take longer and bring more deadlines.
        """
        shape = decode_shape(running)
        running_due = min(request.next_deadline for request in running)
        dues = [math.inf, *accumulate((self._due(request) for request in waiting), min)]
        low, high = 0, len(waiting)
        while low < high:
            middle = (low + high + 1) // 2
            pending = [request.pending for request in waiting[:middle]]
            prefill = Shape(middle, sum(pending), sum(tokens * tokens for tokens in pending), sum(pending))
            end = now + self.prefill.predict(prefill)
            end += self.decode.predict(Shape(shape.batch + middle, 0, 0, shape.context + sum(pending) + middle))
            if end <= min(running_due, dues[middle]):
                low = middle
            else:
                high = middle - 1
        return low
