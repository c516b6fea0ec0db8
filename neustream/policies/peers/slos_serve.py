"""slos-serve: plan ahead which new requests are guaranteed; the others get what the guaranteed ones leave."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection
from operator import itemgetter

from neustream.cost import StepPrice
from neustream.plan import Limits, StepPlan
from neustream.policies.base import USUAL, PolicyContext, above
from neustream.policies.mixed_step import MixedStep, tightest_pace
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

CAUTION = 1.0
"""Better than 1.1 on azure-conv 5000 and 11000, azure-code 2500 and 5500 (docs/peers.md)."""
MOST_TOKENS = 8192
"""Tokens of a step where nothing bounds them."""


class SlosServe:
    """SLOs-Serve (arXiv 2504.08784).

    A step takes as long as the tightest TPOT of those that run and are guaranteed. It has a token of each decode; the
    rest of its tokens are the prefill budget. New requests, by the deadline of their prefill, are guaranteed where the
    budget until each deadline covers the prompts due by then. The set is the largest that can be. What is left of each
    step's budget goes to the others (best effort), first come first served.

    Departures: the paper finds the set by dynamic programming over requests, decodes per TPOT and memory. With equal
    values that is Moore and Hodgson's rule, used here with the budget of the decodes that the set brings: n log n. A
    prompt that has begun is the last to lose its guarantee; best effort is never preempted for others. No plan of
    memory, no speculative decoding, no routing.
    """

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL, *, caution: float = CAUTION) -> None:
        self.price = StepPrice(table)
        self.caution = above("caution", caution, 0)
        """Of a step, how many times its predicted seconds have to fit."""

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        step = MixedStep(self.price, streams, limits, streams[DECODE])
        waiting = streams[PREFILL]
        if not waiting:
            return step.plan()
        accepted = self._accepted(now, step, waiting, limits)
        names = {request.request_id for request in accepted}
        pace = min(tightest_pace(step.batch), tightest_pace(accepted))
        least = 0 if step.batch else 1
        seconds = max(pace, step.seconds) / self.caution if step.batch else math.inf
        queue = accepted + [request for request in waiting if request.request_id not in names]
        step.fill(queue, math.inf, seconds, least)
        return step.plan()

    def _accepted(self, now: float, step: MixedStep, waiting: Collection[Request], limits: Limits) -> list[Request]:
        """The guaranteed ones, by deadline. Of those, prompts that have begun are dropped last."""
        pace = min(tightest_pace(step.batch), tightest_pace(waiting))
        alone = self._rate(step, pace, limits)
        crowd = step.beside(len(waiting), sum([r.context for r in waiting]))
        fall = (alone - self._rate(crowd, pace, limits)) / len(waiting) / 2  # half of them decode in the mean
        largest: list[tuple[bool, int, int, Request]] = []
        dropped: set[str] = set()
        tokens = 0
        entries = sorted([(r.next_deadline, i, r) for i, r in enumerate(waiting)], key=itemgetter(0, 1))
        for due, i, request in entries:
            pending = request.pending
            heapq.heappush(largest, (request.is_resident, -pending, i, request))
            tokens += pending
            while largest and tokens > (due - now) * (alone - fall * len(largest)):
                _, negative, _, victim = heapq.heappop(largest)
                tokens += negative
                dropped.add(victim.request_id)
        return [request for _, _, request in entries if request.request_id not in dropped]

    def _rate(self, step: MixedStep, pace: float, limits: Limits) -> float:
        """Prompt tokens per second in steps of one pace beside the decodes of this one."""
        most = max(min(limits.max_work, MOST_TOKENS) - step.sums.decodes, 0)
        if math.isinf(pace):
            return most / step.seconds_with(most) if most else 0.0
        return step.largest(pace / self.caution, most) / pace
