"""Seats for policies that do not count them: a step takes in no more new requests than the device has room for."""

from __future__ import annotations

from dataclasses import replace

from neustream.plan import UNLIMITED, Limits, StepPlan
from neustream.policies.base import StepPolicy, seats_taken
from neustream.streams import Streams


class WithSeats:
    """Keeps the plans of `policy` within `limits.max_resident`.

    A request that is not resident and gets no seat stays in its stream. Where a plan has nobody but such requests,
    the policy plans again for the resident ones, so that somebody ends and a seat becomes free.
    """

    def __init__(self, policy: StepPolicy) -> None:
        self.policy = policy

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        plan = self.policy.plan(now, streams, limits)
        if limits.max_resident >= UNLIMITED or all(request.is_resident for request in plan.batch):
            return plan
        given_up = {rejection.request.request_id for rejection in plan.rejected}
        residents = Streams(streams.modules)
        for request in streams:
            if request.is_resident and (request.request_id not in given_up or request.on_miss == "demote"):
                residents.add(request)
        left = limits.max_resident - seats_taken(residents)
        batch = []
        for request in plan.batch:
            if not request.is_resident:
                left -= request.width
            if request.is_resident or left >= 0:
                batch.append(request)
        if batch:
            return replace(plan, batch=tuple(batch))
        again = self.policy.plan(now, residents, limits)
        more = tuple(rejection for rejection in again.rejected if rejection.request.request_id not in given_up)
        return replace(again, rejected=plan.rejected + more)
