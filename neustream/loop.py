"""The step loop: plan, run, commit. Clock and executor are arguments: real ones in a server, virtual in a simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from neustream.plan import Limits, StepPlan
from neustream.policies.base import StepPolicy
from neustream.request import Outcome, Request
from neustream.streams import Streams

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step: requests that failed (id → reason) and those that are done early (end of text)."""

    failed: Mapping[str, str] = field(default_factory=dict)
    stopped: frozenset[str] = frozenset()


DONE = StepResult()


class Executor(Protocol):
    """Runs the steps of one device."""

    def limits(self) -> Limits:
        """What the device can hold now."""
        ...

    def run(self, plan: StepPlan) -> StepResult:
        """Run the plan's batch to its end."""
        ...


def reject(streams: Streams, plan: StepPlan, now: float) -> list[Request]:
    """Carry out the plan's rejections: end them, or demote those whose user chose so. Returns the ended."""
    ended = []
    for rejection in plan.rejected:
        request = rejection.request
        if request.on_miss == "demote":
            streams.demote(request)
            continue
        streams.remove(request)
        request.end(now, Outcome.REJECTED, rejection.reason)
        ended.append(request)
    return ended


def commit(streams: Streams, plan: StepPlan, result: StepResult, now: float) -> list[Request]:
    """Account for a step that ended at `now`; returns the requests that ended with it.

    Whoever waited in front of the module that ran and was left out has one pass more. Rejections are
    `reject`'s business: they take effect when the step is planned, not when it ends.
    """
    ended: list[Request] = []
    if plan.module is None:
        return ended
    batched = {request.request_id for request in plan.batch}
    for request in streams[plan.module]:
        if request.request_id not in batched:
            request.passes += 1
    for request in plan.batch:
        _complete_visit(streams, request, result, now, ended)
    for chunk in plan.chunks:
        chunk.request.processed += chunk.work
        if chunk.request.pending == 0:
            _complete_visit(streams, chunk.request, result, now, ended)
    return ended


def _complete_visit(streams: Streams, request: Request, result: StepResult, now: float, ended: list[Request]) -> None:
    module = request.module
    if request.outcome is not None:  # withdrawn while its step ran; whoever did so took it out of the stream
        return
    if request.request_id in result.failed:
        streams.remove(request)
        request.end(now, Outcome.FAILED, result.failed[request.request_id])
        ended.append(request)
        return
    if request.advance(now) or request.request_id in result.stopped:
        streams.remove(request, module)
        request.end(now)
        ended.append(request)
    elif request.module != module:
        streams.remove(request, module)
        streams.add(request)


class StepLoop:
    """One device's loop over one policy. `step` never blocks when there is nothing to run."""

    def __init__(
        self,
        policy: StepPolicy,
        streams: Streams,
        executor: Executor,
        clock: Clock,
        on_end: Callable[[Request], None],
        on_step: Callable[[StepPlan, float, float, float], None] | None = None,
    ) -> None:
        self.policy = policy
        self.streams = streams
        self.executor = executor
        self.clock = clock
        self.on_end = on_end
        self.on_step = on_step

    def step(self) -> StepPlan:
        """Plan, run, commit one step. `on_step` gets the plan and the times (asked, planned, ended)."""
        asked = self.clock()
        plan = self.policy.plan(asked, self.streams, self.executor.limits())
        planned = self.clock()
        for request in reject(self.streams, plan, planned):
            self.on_end(request)
        result = self.executor.run(plan) if plan.module is not None else DONE
        ended = self.clock()
        for request in commit(self.streams, plan, result, ended):
            self.on_end(request)
        if self.on_step is not None:
            self.on_step(plan, asked, planned, ended)
        return plan

    def abort(self, request_id: str, reason: str = "aborted") -> Request | None:
        """Withdraw a request at a step boundary; returns it, or None where no such request is live."""
        request = self.streams.get(request_id)
        if request is not None:
            self.streams.remove(request)
            request.end(self.clock(), Outcome.ABORTED, reason)
            self.on_end(request)
        return request
