"""scorpio: guards at the door for TTFT and TPOT, and as many decode steps for each as its TPOT needs."""

from __future__ import annotations

import math
from collections.abc import Collection
from operator import itemgetter

from neustream.cost import StepPrice
from neustream.latency import Shape
from neustream.plan import Limits, Rejection, StepPlan
from neustream.policies.base import USUAL, PolicyContext, at_least
from neustream.policies.mixed_step import MixedStep, tightest_pace
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

BUDGET = 256
"""Tokens in a step, tuned on azure-conv 5000 and 11000, azure-code 2500 and 5500 (docs/peers.md)."""


class Scorpio:
    """SCORPIO (arXiv 2505.23022).

    TTFT guard: waiting prompts go by the deadline of their first token. Who cannot have it by then, after the prompts
    ahead, is rejected. TPOT guard: with TRP = tightest TPOT / own TPOT and the virtual batch ΣTRP, a prompt is let in
    where a decode step of that batch, at the mean context, is within the tightest TPOT. Credit batching: each step
    adds TRP to a request's credit; it decodes where that comes to 1, and pays 1.

    Departures: prompts ride along in pieces of `budget` tokens, and the guard's prefill times are of such steps. Credit
    is counted from the steps that a request has seen, so that a plan changes nothing. A request that has delivered is
    never rejected. The mean context is that of now: the length predictor of the paper is not needed for it.
    """

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL, *, budget: int = BUDGET) -> None:
        self.price = StepPrice(table)
        self.budget = at_least("budget", budget, 1)

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        running, waiting = streams[DECODE], streams[PREFILL]
        if not waiting:
            return MixedStep(self.price, streams, limits, _in_turn(running)).plan()
        step = MixedStep(self.price, streams, limits, _in_turn(running))
        kept, rejected = self._ttft_guard(now, step, waiting, limits)
        step.fill(self._tpot_guard(running, kept, limits), max(self.budget - step.sums.decodes, 0 if step.batch else 1))
        return step.plan(rejected)

    def _ttft_guard(
        self, now: float, step: MixedStep, waiting: Collection[Request], limits: Limits
    ) -> tuple[list[Request], list[Rejection]]:
        """Those that can have their first token in time, by its deadline, and the others."""
        piece = max(min(self.budget, limits.max_work) - step.sums.decodes, 1)
        per_token = step.seconds_with(piece) / piece
        end = now
        kept: list[Request] = []
        rejected: list[Rejection] = []
        entries = sorted([(r.next_deadline, i, r) for i, r in enumerate(waiting)], key=itemgetter(0, 1))
        for due, _, request in entries:
            ends = end + request.pending * per_token
            if ends > due and not request.units and not request.is_resident:
                reason = f"first unit due in {due - now:.3f} s, expected in {ends - now:.3f} s after those ahead"
                rejected.append(Rejection(request, reason))
                continue
            kept.append(request)
            end = ends
        return kept, rejected

    def _tpot_guard(self, running: Collection[Request], kept: list[Request], limits: Limits) -> list[Request]:
        """Those that the virtual batch leaves room for, in order; what has begun is in it already."""
        everyone = [*running, *(request for request in kept if request.is_resident)]
        drift = limits.drift.get(DECODE, 1.0)
        rates = [_rate(request) for request in everyone]
        fastest = max(rates, default=0.0)
        total, context = sum(rates), sum([request.context for request in everyone])
        count = len(everyone)
        admitted: list[Request] = []
        is_closed = False
        for request in kept:
            if not request.is_resident:
                if is_closed:
                    continue
                rate = _rate(request)
                most, size = max(fastest, rate), context + request.context
                is_full = most > 0.0 and not self._holds((total + rate) / most, size / (count + 1), drift, 1.0 / most)
                if count and is_full:
                    is_closed = True  # none is let past it, but those that have begun go on
                    continue
                fastest, total, context, count = most, total + rate, size, count + 1
            admitted.append(request)
        return admitted

    def _holds(self, virtual: float, length: float, drift: float, pace: float) -> bool:
        """Whether a decode step of a virtual batch takes no longer than the tightest pace."""
        batch = max(math.ceil(virtual), 1)
        return self.price.decode.predict(Shape(batch, 0, 0, round(virtual * length))) * drift <= pace


def _rate(request: Request) -> float:
    """Units per second that a request was promised; 0 where it was promised none."""
    pace = request.deadlines.pace
    return 1.0 / pace if pace else 0.0


def _in_turn(running: Collection[Request]) -> list[Request]:
    """Who decodes in this step: whose credit comes to a whole number with it."""
    tightest = tightest_pace(running)
    chosen = []
    for request in running:
        pace = request.deadlines.pace
        if pace is None or pace <= tightest:
            chosen.append(request)
            continue
        share = tightest / pace
        seen = request.passes + request.units
        if math.floor(share * (seen + 1)) > math.floor(share * seen):
            chosen.append(request)
    return chosen
