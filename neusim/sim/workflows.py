"""Workflows in virtual time: several engines and tools on one event queue, the core's coordinator above them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from neusim.sim.engine import Engine, Handler
from neusim.sim.events import EventQueue, Priority
from neusim.sim.workflow_figures import NodeCount, WorkflowResult, summarise
from neusim.sim.workflow_load import PoolPlan, Truth, WorkflowWorkload
from neustream.driver import Callbacks
from neustream.policies import StepPolicy
from neustream.records import StepRecord
from neustream.request import Outcome, Request
from neustream.route import PREFILL
from neustream.slo import Deadlines
from neustream.workflow.budget import Budget, make_budget
from neustream.workflow.coordinator import Action, Coordinator, Send, Withdraw
from neustream.workflow.graph import Workflow
from neustream.workflow.pool import CREDITS, Binding, Replica
from neustream.workflow.run import Run
from neustream.workflow.stage import StageCost

HANDOVER = 0.003
"""Seconds from one module to the next one's queue."""
LOOK_EVERY = 0.5
"""Seconds between two looks for workflows that cannot make it any more."""


class CallRequest(Request):
    """A call as its engine's request."""

    __slots__ = ("engine", "has_begun", "run_id", "stage_deadlines", "times")
    run_id: str
    stage_deadlines: Deadlines
    """By the stages' own SLOs: its tokens are judged by them, whatever the budget rule."""
    times: list[float]
    """When its units came out."""
    engine: Engine | None
    """Where it is served; None while it is handed over."""
    has_begun: bool

    def deliver(self, at: float) -> None:
        super().deliver(at)
        self.times.append(at)


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
        credits: int = CREDITS,
        handover: float = HANDOVER,
    ) -> None:
        self.workflow = workflow
        self.stages = stages
        self.pools = pools
        self.workload = workload
        self.handover = handover
        self.ended: list[Run] = []
        self.nodes = {node.name: NodeCount() for node in workflow.nodes if node.kind == "llm"}
        self.busy: dict[str, float] = dict.fromkeys(pools, 0.0)
        """Seconds of steps and of tool runs by pool."""
        self.spent: dict[str, float] = defaultdict(float)
        """A workflow's share of these."""
        self._events: EventQueue[Handler] = EventQueue()
        self._engines: dict[str, Engine] = {}
        self._live: dict[str, tuple[Send, CallRequest | None]] = {}
        self._calls: dict[str, CallRequest] = {}
        """Every call so far: a step may end whose request was withdrawn."""
        self._is_over = False
        replicas = {name: self._replicas(name, plan, policy, credits) for name, plan in pools.items()}
        self.coordinator = Coordinator(workflow, stages, replicas, budget, workload.size, self.ended.append, binding)

    def _replicas(
        self, pool: str, plan: PoolPlan, policy: Callable[[StageCost], StepPolicy], credits: int
    ) -> list[Replica]:
        served = [self.stages[node.name] for node in self.workflow.nodes if node.pool_name == pool]
        if not served:
            raise ValueError(f"pool {pool!r} serves no node of workflow {self.workflow.name!r}")
        names = [f"{pool}-{i}" for i in range(plan.replicas)]
        if plan.device is None:
            return [Replica(name, plan.seats) for name in names]
        cost = served[0] if plan.table is None else replace(served[0], table=plan.table)
        for name in names:
            self._engines[name] = Engine(
                cost.table,
                plan.device,
                partial(policy, cost),
                Callbacks(self._ended, partial(self._stepped, pool)),
                events=self._events,
                num_units=self._num_units,
            )
        return [Replica(name, credits) for name in names]

    def run(self) -> WorkflowResult:
        """Serve the workload until every workflow has ended."""
        self._expect(self.workload.runs(self.workflow))
        self._events.push(LOOK_EVERY, Priority.PLANS, self._look)
        while len(self._events):
            now, handle = self._events.pop()
            handle(now)
        assert self.coordinator.num_live == 0, f"{self.coordinator.num_live} workflows wait for ever"
        self.coordinator.check_integrity()
        for engine in self._engines.values():
            engine.check_integrity()
            assert engine.num_live == 0
        sizes = {name: plan.replicas for name, plan in self.pools.items()}
        summary = summarise(self.ended, self.nodes, self.busy, sizes, self.spent, self.workload.window)
        return WorkflowResult(summary, tuple(self.ended), self.coordinator.num_stale)

    # Workflows come, and the coordinator's actions are carried out.

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
                if request is not None and request.engine is not None:
                    self._events.push(now, Priority.ENTERS, partial(self._withdraw, request, action.reason))
            elif action.node.kind == "tool":
                truth = self.workload.truth(action.run, action.node)
                self._live[action.call] = action, None
                end = partial(self._tool_ended, action.call, truth)
                self._events.push(now + self.handover + truth.seconds, Priority.STEP_ENDS, end)
            else:
                self._hand_over(action, now)

    def _hand_over(self, send: Send, now: float) -> None:
        visit, stage = send.run.visit, self.stages[send.node.name]
        request = CallRequest(send.call, now, send.deadlines, stage.route(), visit.size, slo_class=send.node.name)
        request.stage_deadlines = stage.deadlines(send.run.granted_until, visit.size)
        request.run_id, request.times = send.run.run_id, []
        request.engine, request.has_begun = None, False
        self._live[send.call] = send, request
        self._calls[send.call] = request
        self._events.push(now + self.handover, Priority.ENTERS, partial(self._submit, send.replica, request))
        count = self.nodes.get(send.node.name)
        if count is not None and count.first_arrival is None:
            count.first_arrival = visit.queued_at

    def _submit(self, replica: str, request: CallRequest, now: float) -> None:
        if request.request_id in self._live:
            request.engine = self._engines[replica]
            request.engine.submit(request, now)

    def _withdraw(self, request: CallRequest, reason: str, now: float) -> None:
        if request.outcome is None:
            assert request.engine is not None
            request.engine.abort(request, now, reason)

    # Engines and tools report.

    def _num_units(self, request: Request) -> int:
        live = self._live.get(request.request_id)
        if live is None:
            return request.max_units
        send, _ = live
        return self.workload.truth(send.run, send.node).units

    def _stepped(self, pool: str, record: StepRecord) -> None:
        self.busy[pool] += record.seconds
        end = record.time + record.seconds
        for call in record.request_ids:
            request = self._calls[call]
            self.spent[request.run_id] += record.seconds / record.batch_size
            if not request.has_begun and request.outcome is None:
                request.has_begun = True
                units = request.units if record.kind == PREFILL else 0
                self._carry_out(self.coordinator.delivered(request.request_id, units, end), end)

    def _ended(self, request: Request) -> None:
        assert isinstance(request, CallRequest)
        assert request.ended_at is not None
        now = request.ended_at
        is_complete = request.outcome in (Outcome.MET, Outcome.LATE)
        count = self.nodes.get(request.slo_class)
        if count is not None:
            due = request.stage_deadlines.at
            on_time = [at <= due(unit) for unit, at in enumerate(request.times, start=1)]
            count.add(request.times, on_time, is_complete)
        call = request.request_id
        if call not in self._live:
            return
        send, _ = self._live.pop(call)
        if is_complete:
            label = self.workload.truth(send.run, send.node).label
            actions = self.coordinator.delivered(call, request.units, now)
            actions += self.coordinator.ended(call, label, request.units, now)
        else:
            outcome = Outcome.REJECTED if request.outcome is Outcome.REJECTED else Outcome.FAILED
            actions = self.coordinator.given_up(call, f"{send.node.name}: {request.reason}", now, outcome)
        self._carry_out(actions, now)

    def _tool_ended(self, call: str, truth: Truth, now: float) -> None:
        if call not in self._live:
            return
        send, _ = self._live.pop(call)
        self.busy[send.node.pool_name] += truth.seconds / self.pools[send.node.pool_name].seats
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

    `policy` makes the policy of one replica from the cost of a node that it serves. Raises ValueError for a node that
    no pool serves, a pool that serves no node, and an unknown budget rule.
    """
    rule = make_budget(budget) if isinstance(budget, str) else budget
    return WorkflowSimulator(workflow, stages, pools, policy, rule, workload, **options).run()
