"""Requests whose user chose `demote`: past hope, they are served when no live request needs the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from neustream.plan import UNLIMITED, Limits, StepPlan
from neustream.policies.base import StepPolicy, seats_taken
from neustream.request import Request
from neustream.streams import Streams


class WithDemotion:
    """Hides demoted requests from a policy, and lets `fallback` serve them when the policy has nothing to run.

    The policy sees the device as if no demoted request held memory or a seat of it. Where its plan needs what they
    hold, the plan preempts as many of them as that takes, the newest first. So a demoted request costs a live one
    at most the end of the step under way.
    """

    def __init__(self, policy: StepPolicy, fallback: StepPolicy) -> None:
        self.policy = policy
        self.fallback = fallback

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        if not streams.num_demoted:
            return self.policy.plan(now, streams, limits)
        live, demoted = streams.split()
        residents = _residents(demoted)
        seen = limits
        if residents and limits.free_blocks < UNLIMITED:
            held = sum([blocks_held(request, limits) for request in residents])
            seen = replace(limits, free_blocks=limits.free_blocks + held)
        plan = self.policy.plan(now, live, seen)
        if plan.module is None:
            return self._idle(now, plan, _residents(live), demoted, limits)
        if not residents:
            return plan
        blocks = limits.free_blocks - blocks_needed(plan, limits)
        new = [request for request in plan.members if not request.is_resident]
        seats = 0
        if new:
            taken = seats_taken(new) + seats_taken(residents) + seats_taken(_residents(live))
            seats = limits.max_resident - taken
        preempted = _evict(residents, blocks, seats, limits)
        return replace(plan, preempted=preempted) if preempted else plan

    def _idle(self, now: float, plan: StepPlan, live: Sequence[Request], demoted: Streams, limits: Limits) -> StepPlan:
        """A step of demoted requests, beside the `live` ones that hold memory and do not run.

        Those keep it: where the demoted ones outgrow the rest, the newest of them lose theirs instead.
        """
        room = replace(limits, max_resident=max(limits.max_resident - seats_taken(live), 0))
        idle = self.fallback.plan(now, demoted, room)
        preempted: tuple[Request, ...] = ()
        if live and idle.module is not None:
            preempted = _evict(_residents(demoted), limits.free_blocks - blocks_needed(idle, limits), 0, limits)
            batch = tuple(request for request in idle.batch if request not in preempted)
            if not batch:
                return plan
            idle = replace(idle, batch=batch)
        return replace(idle, rejected=plan.rejected, preempted=preempted, wake=None if idle.module else plan.wake)


def blocks_held(request: Request, limits: Limits) -> int:
    """Blocks that a resident request holds at least: its last unit has none before the next step."""
    return limits.blocks(request.context - 1 if request.stage else request.processed)


def blocks_needed(plan: StepPlan, limits: Limits) -> int:
    """Free blocks without which a driver would preempt somebody for this step, or could not run all of it."""
    if limits.free_blocks >= UNLIMITED:
        return 0
    first = [request for request in plan.members if not request.stage]
    grown = [request for request in plan.batch if request.stage]
    needed = sum(
        limits.blocks(request.context) - blocks_held(request, limits)
        if request.is_resident
        else limits.blocks(request.pending)
        for request in first
    )
    if first:
        needed += limits.spare_blocks
    if grown:  # each in turn needs a free block per sequence, whether it fills it or not
        seats = [request.width for request in grown]
        needed += max(seats) + sum(seats)
        if needed > limits.free_blocks:  # not all of them begin a block in this step
            size = limits.block_size
            needed -= sum([request.width for request in grown if (request.context - 1) % size])
    return needed


def _residents(streams: Streams) -> list[Request]:
    return [request for request in streams if request.is_resident]


def _evict(residents: Iterable[Request], blocks: int, seats: int, limits: Limits) -> tuple[Request, ...]:
    """The newest of these, as many as it takes until neither `blocks` nor `seats` is below 0."""
    if blocks >= 0 and seats >= 0:
        return ()
    evicted: list[Request] = []
    newest_first = sorted(residents, key=lambda request: request.arrival, reverse=True)
    while newest_first and (blocks < 0 or seats < 0):
        request = newest_first.pop(0)
        blocks += blocks_held(request, limits)
        seats += request.width
        evicted.append(request)
    return tuple(evicted)
