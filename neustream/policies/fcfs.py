"""fcfs: what vLLM 0.5.4 does by default. Prefill whatever fits, first come first served, before any decode."""

from __future__ import annotations

from itertools import islice

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
            count = num_fitting(waiting, seats_taken(running), limits)
            if count:
                return StepPlan(PREFILL, tuple(islice(waiting, count)))
        if running:
            return StepPlan(DECODE, tuple(running))
        return IDLE
