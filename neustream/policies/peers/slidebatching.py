"""slidebatching: as much value as a step's time holds, by deadline in calm times and by value per second in others."""

from __future__ import annotations

import math
from collections.abc import Collection
from operator import itemgetter

from neustream.cost import StepPrice
from neustream.plan import Limits, StepPlan
from neustream.policies.base import USUAL, PolicyContext, above, not_negative
from neustream.policies.mixed_step import MixedStep
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

LEAST_SECONDS = 0.05
AGGRESSIVENESS = 0.9
"""The paper has 0.8 to 1. This and the patience were tuned on azure-conv 5000 and 11000, azure-code 2500 and 5500."""
PATIENCE = 3600.0
"""Seconds; a shorter one serves ever more late requests first where load is above capacity."""


class SlideBatching:
    """SlideBatching of ProServe (arXiv 2512.12928): value is tokens on time.

    The step's time is the least time to a deadline that can still be met, and at least `least_seconds`. Of the queue,
    those are urgent whose time left is below `aggressiveness` × the seconds that all of it takes: they go first, by
    gain per second. The others follow by deadline. So few waiting are served by deadline, many by density. Who has
    waited `patience` seconds past its deadline goes to the front. Items join until the step's time is used up.

    Departures: every token weighs the same, and one that is late gains nothing. Decodes need so little that they have
    the highest density, so they come first and in full, as long as any can be in time. Memory is not offloaded.
    """

    def __init__(
        self,
        table: LatencyTable,
        context: PolicyContext = USUAL,
        *,
        least_seconds: float = LEAST_SECONDS,
        aggressiveness: float = AGGRESSIVENESS,
        patience: float = PATIENCE,
    ) -> None:
        self.price = StepPrice(table)
        self.least_seconds = above("least_seconds", least_seconds, 0)
        self.aggressiveness = not_negative("aggressiveness", aggressiveness)
        self.patience = not_negative("patience", patience)

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        step = MixedStep(self.price, streams, limits, streams[DECODE])
        waiting = streams[PREFILL]
        if waiting:
            dues = [due - now for request in streams if (due := request.next_deadline) > now]
            seconds = max(min(dues, default=math.inf), self.least_seconds)
            step.fill(self._queue(now, step, waiting, limits), math.inf, seconds, 0 if step.batch else 1)
        return step.plan()

    def _queue(self, now: float, step: MixedStep, waiting: Collection[Request], limits: Limits) -> list[Request]:
        most = max(min(limits.max_work, 2048) - step.sums.decodes, 1)
        per_token = step.seconds_with(most) / most
        horizon = self.aggressiveness * per_token * sum([request.pending for request in waiting])
        ranked = []
        for request in waiting:
            seconds, left = request.pending * per_token, request.next_deadline - now
            if left < -self.patience:
                key = (0, left)
            elif left < seconds:
                key = (3, seconds)
            elif left < horizon:
                key = (1, seconds)
            else:
                key = (2, left)
            ranked.append((key, request))
        ranked.sort(key=itemgetter(0))
        return [request for _, request in ranked]
