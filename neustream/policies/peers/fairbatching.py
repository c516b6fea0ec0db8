"""fairbatching: a step takes as long as the most urgent decode allows; decodes that are ahead may be left out."""

from __future__ import annotations

import math
from operator import itemgetter

from neustream.cost import StepPrice
from neustream.plan import Limits, StepPlan
from neustream.policies.base import USUAL, PolicyContext, above
from neustream.policies.mixed_step import MixedStep, tightest_pace
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

CAUTION = 1.0
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

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL, *, caution: float = CAUTION) -> None:
        self.price = StepPrice(table)
        self.caution = above("caution", caution, 0)
        """Of a step, how many times its predicted seconds have to fit."""

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
        step.fill(waiting, math.inf, seconds / self.caution, 0 if dues else LEAST)
        step.join(others, seconds / self.caution)
        return step.plan()
