"""The step loop: plan, run, commit. Clock and executor are arguments: real ones in a server, virtual in a simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from neustream.driver import Observer
from neustream.history import StepHistory
from neustream.plan import Limits, StepPlan
from neustream.policies.base import StepPolicy
from neustream.records import StepRecord
from neustream.request import Outcome, Request
from neustream.streams import Streams

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step: requests that failed (id → reason) and those that are done early (end of text)."""

    failed: Mapping[str, str] = field(default_factory=dict)
    stopped: frozenset[str] = frozenset()
    deferred: frozenset[str] = frozenset()
    """Requests of the batch that the device had no memory for: they did not run, and wait on in their stream."""


DONE = StepResult()


class Executor(Protocol):
    """Runs the steps of one device."""

    def limits(self) -> Limits:
        """What the device holds and can do now; the loop's history fills in the past."""
        ...

    def run(self, plan: StepPlan) -> StepResult:
        """Run the plan's batch to its end. The plan's preempted requests hold no memory from here on."""
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


def preempt(streams: Streams, plan: StepPlan) -> None:
    """Send the plan's preempted requests back to their first stage, before the step; the memory is the driver's."""
    for request in plan.preempted:
        streams.preempt(request)


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
    for piece in plan.pieces:
        if piece.request.process(piece.work):
            _complete_visit(streams, piece.request, result, now, ended)
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


def step_record(
    streams: Streams,
    plan: StepPlan,
    asked: float,
    seconds: float,
    *,
    expected: float | None,
    deciding: float = 0.0,
    scheduling: float = 0.0,
) -> StepRecord:
    """The record of a step that has ended and is not committed yet: who was in it, how they and the others stood.

    Its planning began at `asked`, it took `seconds` with that, and `expected` by the table; of these, `deciding` the
    policy and `scheduling` all that was not its module.
    """
    assert plan.module is not None
    assert plan.kind is not None
    members = plan.members
    return StepRecord(
        time=asked,
        kind=plan.kind,
        request_ids=tuple([request.request_id for request in members]),
        seconds=seconds,
        decision_seconds=deciding,
        schedule_seconds=scheduling,
        predicted_seconds=expected,
        num_waiting=len(streams) - len(members),
        rejected=tuple([rejection.request.request_id for rejection in plan.rejected]),
        rest_seconds=tuple([request.next_deadline - asked for request in members]),
        extra={
            "num_queued": len(streams[plan.module]),
            "num_passed_over": len([request for request in members if request.passes]),
        },
    )


class StepLoop:
    """One device's loop over one policy. `step` never blocks when there is nothing to run.

    `observer` hears of each step that ran something and of each end. `history` is what policies are told of the past;
    without one the loop keeps its own, which knows no latency table and so no drift.
    """

    def __init__(
        self,
        policy: StepPolicy,
        streams: Streams,
        executor: Executor,
        clock: Clock,
        observer: Observer,
        history: StepHistory | None = None,
    ) -> None:
        self.policy = policy
        self.streams = streams
        self.executor = executor
        self.clock = clock
        self.observer = observer
        self.history = history if history is not None else StepHistory()

    def step(self) -> StepPlan:
        """Plan, run, commit one step; returns its plan, less the requests that the executor deferred."""
        asked = self.clock()
        plan = self.policy.plan(asked, self.streams, self.history.limits(self.executor.limits()))
        planned = self.clock()
        for request in reject(self.streams, plan, planned):
            self._end(request)
        preempt(self.streams, plan)
        if plan.kind is None:
            return plan
        self.history.planned(plan)
        started = self.clock()
        result = self.executor.run(plan)
        ended = self.clock()
        if result.deferred:
            batch = tuple(request for request in plan.batch if request.request_id not in result.deferred)
            if not batch and not plan.pieces:
                return replace(plan, module=None, batch=(), wake=ended)
            plan = replace(plan, batch=batch)
            self.history.planned(plan)
        assert plan.kind is not None
        deciding, expected = planned - asked, self.history.expected
        record = step_record(
            self.streams, plan, asked, ended - asked, expected=expected, deciding=deciding, scheduling=deciding
        )
        self.history.ended(plan.kind, ended - started, started - asked)
        for request in commit(self.streams, plan, result, ended):
            self._end(request)
        self.observer.on_step(record)
        return plan

    def abort(self, request_id: str, reason: str = "aborted") -> Request | None:
        """Withdraw a request at a step boundary; returns it, or None where no such request is live."""
        request = self.streams.get(request_id)
        if request is not None:
            self.streams.remove(request)
            request.end(self.clock(), Outcome.ABORTED, reason)
            self._end(request)
        return request

    def _end(self, request: Request) -> None:
        self.history.finished(request)
        self.observer.on_end(request)
