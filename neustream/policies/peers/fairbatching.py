"""fairbatching: a step takes as long as the most urgent decode allows; decodes that are ahead may be left out."""

from __future__ import annotations

import math
from operator import itemgetter

from neustream.cost import StepPrice
from neustream.plan import Limits, StepPlan
from neustream.policies.base import USUAL, PolicyContext
from neustream.policies.peers.common import MixedStep, tightest_pace
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

LEAST = 1
"""Tokens of prompts in a step with nothing else to run."""


class FairBatching:
    """FairBatching (arXiv 2510.14392).

    A token's slack is the time until its deadline on the envelope `arrival + TTFT + TPOT·j`. The step's time is the
    least slack of the decodes, and at least the tightest TPOT. Decodes with less slack than that and one TPOT more are
    urgent. The step takes urgent decodes, then prompts in pieces, then the other decodes, each by slack, while its
    predicted time is within. Nobody is dropped.

    Departures: the time model is the table's price. Without decodes the device's tokens per step bound it. The load
    signal for a router of many devices is left out.
    """

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL) -> None:
        self.price = StepPrice(table)

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        waiting = sorted(streams[PREFILL], key=lambda request: request.next_deadline)
        dues = sorted([(r.next_deadline, r) for r in streams[DECODE]], key=itemgetter(0))
        pace = tightest_pace(streams)
        finite = pace if pace < math.inf else 0.0
        seconds = max(dues[0][0] - now, finite) if dues else math.inf
        urgent = [request for due, request in dues if due - now < seconds + finite]
        others = [request for due, request in dues if due - now >= seconds + finite]
        if not waiting:
            return MixedStep(self.price, streams, limits, urgent + others).plan()
        step = MixedStep(self.price, streams, limits, urgent)
        step.fill(waiting, math.inf, seconds, 0 if dues else LEAST)
        return self._with_others(step, others, seconds, streams, limits)

    def _with_others(
        self, step: MixedStep, others: list[Request], seconds: float, streams: Streams, limits: Limits
    ) -> StepPlan:
        """The step and as many of the other decodes as its time allows, the most urgent first."""
        low, high = (0 if step.batch or step.pieces else min(1, len(others))), len(others)
        while low < high:
            middle = (low + high + 1) // 2
            if self._joined(step, others[:middle], streams, limits).seconds <= seconds:
                low = middle
            else:
                high = middle - 1
        return self._joined(step, others[:low], streams, limits).plan()

    def _joined(self, step: MixedStep, more: list[Request], streams: Streams, limits: Limits) -> MixedStep:
        joined = MixedStep(self.price, streams, limits, [*step.batch, *more])
        for request, tokens in step.pieces:
            if joined.room(request) < tokens:
                joined.is_closed = True
                break
            joined.take(request, tokens)
        return joined
