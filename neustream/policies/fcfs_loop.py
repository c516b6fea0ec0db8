"""fcfs for pipelines of loop modules: the plainest order there is, a baseline. It also serves demoted requests."""

from __future__ import annotations

from neustream.plan import IDLE, Limits, StepPlan
from neustream.streams import Streams


class FcfsLoop:
    """The last module that has requests runs the one that entered its stream first, alone; nobody is rejected."""

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        for module in reversed(streams.modules):
            for request in streams[module]:
                return StepPlan(module, (request,))
        return IDLE
