"""Which waiting prompts can all have their first token in time, by the rate at which steps get through prompts."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from neustream.plan import Limits
from neustream.policies.mixed_step import MixedStep, tightest_pace
from neustream.request import Request

MOST_TOKENS = 4096
"""Prompt tokens of the largest step that a rate is asked for."""
NO_PACE = 1.0
"""Seconds of the step whose rate counts where nobody was promised a pace."""


class Demand:
    """How many prompt tokens a device can get through by a deadline, beside the decodes that it has.

    In the long run a step takes one `pace` of the tightest promise, and its tokens are what fits in. The decodes
    become more: with `n` of the waiting accepted, half of them decode in the mean. On top comes what the running
    requests are ahead of their deadlines now: that time may go to pieces alone.
    """

    def __init__(
        self, step: MixedStep, waiting: Sequence[Request], limits: Limits, *, lead: float, pace: float, reserve: float
    ) -> None:
        most = max(min(limits.max_work, MOST_TOKENS) - step.sums.decodes, 1)
        span = min(pace, tightest_pace(waiting)) * (1.0 - reserve)
        span = span if math.isfinite(span) else NO_PACE
        crowd = step.beside(len(waiting), sum([request.context for request in waiting]))
        self._rate = _rate(step, span, most)
        self._fall = (self._rate - _rate(crowd, span, most)) / len(waiting) / 2
        beside, half = step.seconds_with(most), most // 2
        marginal = (beside - step.seconds_with(half)) / (most - half)
        self._ahead = max(lead - span, 0.0) / marginal if step.batch and marginal > 0.0 else 0.0

    def by(self, seconds: float, count: int) -> float:
        """Prompt tokens within so many seconds, where `count` of the waiting are accepted."""
        return seconds * max(self._rate - self._fall * count, 0.0) + self._ahead


def accept(now: float, queue: Sequence[Request], demand: Demand, margin: float, fairness: float) -> list[Request]:
    """The largest part of the queue, which is in order of deadline, that can be done in time.

    That is Moore and Hodgson's rule: where the prompts so far, times `margin`, cannot be done by a deadline, the
    longest of them is dropped. With `fairness` above 0 the length counts as its power `1 - fairness`; at 1 it is
    the last that is dropped, whatever its length. What has begun, or has delivered, is dropped last. n log n.
    """
    heap: list[tuple[bool, float, int, Request]] = []
    dropped: set[int] = set()
    tokens = 0
    for i, request in enumerate(queue):
        length = float(request.pending) ** (1.0 - fairness)
        heapq.heappush(heap, (request.is_resident or request.units > 0, -length, -i, request))
        tokens += request.pending
        while heap and tokens * margin > demand.by(request.next_deadline - now, len(heap)):
            _, _, index, victim = heapq.heappop(heap)
            tokens -= victim.pending
            dropped.add(-index)
    return [request for i, request in enumerate(queue) if i not in dropped]


def _rate(step: MixedStep, span: float, most: int) -> float:
    """Prompt tokens per second in steps of at most `span` seconds, or of the decodes alone where those take longer."""
    span = max(span, step.seconds)
    return step.largest(span, most) / span
