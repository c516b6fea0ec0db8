"""fcfs: what vLLM 0.5.4 does by default. Prefill whatever fits, first come first served, before any decode."""

from __future__ import annotations

from neustream.plan import IDLE, Limits, StepPlan
from neustream.policies.base import num_fitting, seats_taken
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams


class Fcfs:
    """The scheduling order of stock vLLM; SLOs are ignored and nobody is rejected."""

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        waiting = streams[PREFILL]
        running = streams[DECODE]
        if waiting:
            # A step takes a bounded number; a long queue need not be copied to find it.
            head = []
            work = 0
            for request in waiting:
                head.append(request)
                work += request.pending
                if work > limits.max_work or len(head) > limits.max_resident:
                    break
            count = num_fitting(head, seats_taken(running), limits)
            if count:
                return StepPlan(PREFILL, tuple(head[:count]))
        if running:
            return StepPlan(DECODE, tuple(running))
        return IDLE
