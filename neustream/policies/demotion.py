"""Requests whose user chose `demote`: past hope, they are served when nothing else needs the device."""

from __future__ import annotations

from dataclasses import replace

from neustream.plan import Limits, StepPlan
from neustream.policies.base import StepPolicy
from neustream.streams import Streams


class WithDemotion:
    """Hides demoted requests from a policy, and lets `fallback` serve them when the policy has nothing to run."""

    def __init__(self, policy: StepPolicy, fallback: StepPolicy) -> None:
        self.policy = policy
        self.fallback = fallback

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        if not streams.num_demoted:
            return self.policy.plan(now, streams, limits)
        live, demoted = streams.split()
        plan = self.policy.plan(now, live, limits)
        if plan.module is not None or not len(demoted):
            return plan
        idle = self.fallback.plan(now, demoted, limits)
        return replace(idle, rejected=plan.rejected, wake=None if idle.module else plan.wake)
