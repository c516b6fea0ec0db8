"""Workflows in virtual time: several engines and tools on one event queue, the core's coordinator above them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from neusim.sim.device import Device
from neusim.sim.engine import Engine, Handler
from neusim.sim.events import EventQueue, Priority
from neustream.goodput import Reservoir
from neustream.plan import StepPlan
from neustream.policies import StepPolicy
from neustream.request import Outcome, Request
from neustream.route import PREFILL
from neustream.slo import Deadlines
from neustream.workflow.budget import Budget, make_budget
from neustream.workflow.coordinator import Action, Coordinator, Send, Withdraw
from neustream.workflow.graph import Node, Workflow
from neustream.workflow.pool import Binding, Replica
from neustream.workflow.run import Run
from neustream.workflow.stage import StageCost

HANDOVER = 0.003
"""Seconds from one module to the next one's queue."""
LOOK_EVERY = 0.5
"""Seconds between two looks for workflows that cannot make it any more."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a call really does, which no rule and no policy knows before it has ended."""

    units: int = 1
    label: str = "ok"
    seconds: float = 0.0
    """What a tool's run takes."""


class WorkflowWorkload(Protocol):
    """Which workflows come, when, and what their calls really do."""

    def runs(self, workflow: Workflow) -> Iterator[Run]:
        """Fresh workflows in order of arrival; the same ones at every call."""
        ...

    def size(self, run: Run, node: Node) -> int:
        """Units of input of the next call, from what the run has produced so far."""
        ...

    def truth(self, run: Run, node: Node) -> Truth:
        """What the call under way will do; the same at every call."""
        ...


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The replicas of one pool: how many, each on a device of its own."""

    replicas: int
    device: Device | None = None
    """What each is simulated on; None for a tool."""
    seats: int = 1
    """Runs of a tool at once, per replica."""


@dataclass(frozen=True, slots=True)
class WorkflowResult:
    """What came of a simulated run of workflows."""

    summary: dict[str, Any]
    runs: tuple[Run, ...] = field(repr=False)
    num_stale: int = 0

    @property
    def good(self) -> int:
        """Workflows that were done by their deadline."""
        return int(self.summary["good"])


class CallRequest(Request):
    """A call as its engine's request. `stage` are the deadlines by the stages' own SLOs: tokens are judged by them."""

    __slots__ = ("stage_deadlines", "times")
    stage_deadlines: Deadlines
    times: list[float]

    def deliver(self, at: float) -> None:
        super().deliver(at)
        self.times.append(at)


@dataclass(slots=True)
class ModuleCount:
    """Tokens of one node's calls: when they came out, and whether in time by the stages' own SLOs."""

    first_arrival: float | None = None
    tokens: list[tuple[float, bool]] = field(default_factory=list)

    def goodput(self, after: float, window: float) -> float:
        """Tokens in time per second among those of `[after, after + window]` from the node's first call on."""
        if self.first_arrival is None:
            return 0.0
        start = self.first_arrival + after
        return sum(on_time for at, on_time in self.tokens if start <= at <= start + window) / window


class WorkflowSimulator:
    """One coordinator over simulated replicas; every tool seat and every engine is on the same event queue."""

    def __init__(
        self,
        workflow: Workflow,
        stages: Mapping[str, StageCost],
        pools: Mapping[str, PoolPlan],
        policy: Callable[[StageCost], StepPolicy],
        budget: Budget,
        workload: WorkflowWorkload,
        *,
        binding: Binding = "late",
        credits: int = 4,
        handover: float = HANDOVER,
    ) -> None:
        self.workflow = workflow
        self.stages = stages
        self.workload = workload
        self.handover = handover
        self.ended: list[Run] = []
        self.modules = {node.name: ModuleCount() for node in workflow.nodes if node.kind == "llm"}
        self._events: EventQueue[Handler] = EventQueue()
        replicas: dict[str, list[Replica]] = {}
        self._engines: dict[str, Engine] = {}
        self._busy: dict[str, int] = {}
        for name, plan in pools.items():
            served = [stages[node.name] for node in workflow.nodes if node.pool_name == name]
            if not served:
                raise ValueError(f"pool {name!r} serves no node of workflow {workflow.name!r}")
            names = [f"{name}-{i}" for i in range(plan.replicas)]
            free = plan.seats if plan.device is None else credits
            replicas[name] = [Replica(replica, free) for replica in names]
            for replica in names if plan.device is not None else ():
                assert plan.device is not None
                self._engines[replica] = Engine(
                    served[0].table,
                    plan.device,
                    partial(policy, served[0]),
                    self._ended,
                    on_step=self._stepped,
                    num_units=self._num_units,
                    events=self._events,
                )
        self._live: dict[str, tuple[Send, CallRequest | None]] = {}
        self._now = 0.0
        self.coordinator = Coordinator(
            workflow, stages, replicas, budget, self.workload.size, self.ended.append, binding
        )

    def run(self) -> None:
        """Serve the workload until every workflow has ended."""
        self._expect(self.workload.runs(self.workflow))
        self._events.push(LOOK_EVERY, Priority.PLANS, self._look)
        while len(self._events):
            self._now, handle = self._events.pop()
            handle(self._now)
        assert self.coordinator.num_live == 0, f"{self.coordinator.num_live} workflows wait for ever"
        self.coordinator.check_integrity()
        for engine in self._engines.values():
            engine.check_integrity()

    def _expect(self, runs: Iterator[Run]) -> None:
        run = next(runs, None)
        self._is_over = run is None
        if run is not None:
            self._events.push(run.arrival, Priority.ENTERS, partial(self._arrive, run, runs))

    def _arrive(self, run: Run, runs: Iterator[Run], now: float) -> None:
        self._carry_out(self.coordinator.submit(run, now), now)
        self._expect(runs)

    def _carry_out(self, actions: Sequence[Action], now: float) -> None:
        for action in actions:
            if isinstance(action, Withdraw):
                _, request = self._live.pop(action.call)
                if request is not None:
                    replica = self._engines[action.replica]
                    self._events.push(now, Priority.ENTERS, partial(self._withdraw, replica, request, action.reason))
                continue
            if action.node.kind == "tool":
                truth = self.workload.truth(action.run, action.node)
                self._live[action.call] = action, None
                end = partial(self._tool_ended, action.call, truth)
                self._events.push(now + self.handover + truth.seconds, Priority.STEP_ENDS, end)
                continue
            visit, stage = action.run.visit, self.stages[action.node.name]
            request = CallRequest(
                action.call, now, action.deadlines, stage.route(), visit.size, slo_class=action.node.name
            )
            request.stage_deadlines = stage.deadlines(action.run.granted_until, visit.size)
            request.times = []
            self._live[action.call] = action, request
            self._events.push(now + self.handover, Priority.ENTERS, partial(self._submit, action.replica, request))
            count = self.modules.get(action.node.name)
            if count is not None and count.first_arrival is None:
                count.first_arrival = visit.queued_at

    def _submit(self, replica: str, request: CallRequest, now: float) -> None:
        if request.request_id in self._live:
            self._engines[replica].submit(request, now)

    def _withdraw(self, engine: Engine, request: CallRequest, reason: str, now: float) -> None:
        if request.outcome is None and request.module in engine.table:
            engine.abort(request, now, reason)

    def _num_units(self, request: Request) -> int:
        live = self._live.get(request.request_id)
        if live is None:
            return request.max_units
        send, _ = live
        return self.workload.truth(send.run, send.node).units

    def _stepped(self, plan: StepPlan, start: float, end: float, waiting: int) -> None:
        if plan.module != PREFILL:
            return
        for request in plan.members:
            if request.outcome is None:
                self._carry_out(self.coordinator.delivered(request.request_id, request.units, end), end)

    def _ended(self, request: Request) -> None:
        assert isinstance(request, CallRequest)
        assert request.ended_at is not None
        now = request.ended_at
        self._count(request)
        live = self._live.pop(request.request_id, None)
        if live is None:
            return
        send, _ = live
        call = request.request_id
        if request.outcome in (Outcome.MET, Outcome.LATE):
            actions = self.coordinator.delivered(call, request.units, now)
            actions += self.coordinator.ended(call, self.workload.truth(send.run, send.node).label, request.units, now)
        else:
            outcome = Outcome.REJECTED if request.outcome is Outcome.REJECTED else Outcome.FAILED
            actions = self.coordinator.given_up(call, f"{send.node.name}: {request.reason}", now, outcome)
        self._carry_out(actions, now)

    def _count(self, request: CallRequest) -> None:
        count = self.modules.get(request.slo_class)
        if count is not None:
            due = request.stage_deadlines.at
            count.tokens += [(at, at <= due(unit)) for unit, at in enumerate(request.times, start=1)]

    def _tool_ended(self, call: str, truth: Truth, now: float) -> None:
        if self._live.pop(call, None) is not None:
            actions = self.coordinator.delivered(call, 1, now)
            self._carry_out(actions + self.coordinator.ended(call, truth.label, 1, now), now)

    def _look(self, now: float) -> None:
        for call, (_, request) in self._live.items():
            if request is not None and request.units:
                self.coordinator.progress(call, request.units)
        self._carry_out(self.coordinator.look(now), now)
        if not (self._is_over and self.coordinator.num_live == 0):
            self._events.push(now + LOOK_EVERY, Priority.PLANS, self._look)


def simulate_workflows(
    workflow: Workflow,
    stages: Mapping[str, StageCost],
    pools: Mapping[str, PoolPlan],
    policy: Callable[[StageCost], StepPolicy],
    budget: str | Budget,
    workload: WorkflowWorkload,
    **options: Any,
) -> WorkflowResult:
    """Serve `workload` on simulated replicas, in virtual time; `options` are those of `WorkflowSimulator`.

    `policy` makes the policy of one replica from the cost of a node that it serves. Raises ValueError for a node that no
    pool serves, a pool that serves no node, and an unknown budget rule.
    """
    rule = make_budget(budget) if isinstance(budget, str) else budget
    simulator = WorkflowSimulator(workflow, stages, pools, policy, rule, workload, **options)
    simulator.run()
    return WorkflowResult(_summary(simulator), tuple(simulator.ended), simulator.coordinator.num_stale)


def _summary(simulator: WorkflowSimulator) -> dict[str, Any]:
    runs = simulator.ended
    seconds = max(run.ended_at or 0.0 for run in runs) - min(run.arrival for run in runs) if runs else 0.0
    good = sum(run.outcome is Outcome.MET for run in runs)
    e2el = Reservoir()
    for run in runs:
        if run.outcome in (Outcome.MET, Outcome.LATE) and run.ended_at is not None:
            e2el.add(run.ended_at - run.arrival)
    span = max(run.arrival for run in runs) - min(run.arrival for run in runs) if runs else 0.0
    return {
        "requests": len(runs),
        "good": good,
        "stages_in_time": sum(_all_stages_in_time(run) for run in runs),
        **{str(outcome): sum(run.outcome is outcome for run in runs) for outcome in Outcome},
        "seconds": seconds,
        "workflow_goodput": good / seconds if seconds > 0 else 0.0,
        "slo_attainment": good / len(runs) if runs else 0.0,
        "e2el": e2el.percentiles(),
        "token_goodput": {
            name: count.goodput(WARM_UP, span) if span > 0 else 0.0 for name, count in simulator.modules.items()
        },
    }


WARM_UP = 30.0
"""Seconds from a module's first call on that its token goodput leaves out, as the artifact does."""


def _all_stages_in_time(run: Run) -> bool:
    """The artifact's criterion: in time at the end, and no stage later than the stages' own SLOs so far."""
    return run.outcome is Outcome.MET and all(
        visit.ended_at is not None and visit.ended_at <= visit.granted_until for visit in run.visits
    )
