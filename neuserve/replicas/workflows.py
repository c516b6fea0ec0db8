"""Workflows over replicas: the core's coordinator, what its nodes are given, and what came of their results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from neuserve.replicas.dispatch import Dispatcher, Order, Tell, pool_status
from neuserve.replicas.factory import Factory
from neuserve.replicas.messages import Begun, Call, CallReport, Ended, Grown, Job, RunEvent, RunReport, Withdrawal
from neustream.request import Outcome
from neustream.slo import DueSlo
from neustream.workflow.budget import Budget, make_budget
from neustream.workflow.coordinator import Action, Coordinator, Send
from neustream.workflow.graph import Node, Workflow
from neustream.workflow.pool import Replica
from neustream.workflow.run import Run, Visit
from neustream.workflow.stage import StageCost


class Result(NamedTuple):
    """What a call of a node has made, and what that was called."""

    node: str
    label: str
    value: Any


@dataclass(slots=True)
class Inputs:
    """What a node knows of its workflow: what the client sent, and what the calls so far have made."""

    run_id: str
    payload: Any
    results: list[Result] = field(default_factory=list)

    def last(self, node: str) -> Any:
        """What the last finished call of that node has made. Raises KeyError where there is none."""
        for result in reversed(self.results):
            if result.node == node:
                return result.value
        raise KeyError(node)


class Prepared(NamedTuple):
    """A call as a node wants it made."""

    payload: Any
    """For the driver."""
    size: int = 1
    """Its units of input: prompt tokens; 1 for a tool or an image."""


NOTHING = Prepared(None)


class NodeWork(Protocol):
    """What a node does, but for the call itself. Both methods run in the coordinator and must be quick."""

    def prepare(self, inputs: Inputs) -> Prepared:
        """The call that is to be made now."""
        ...

    def label(self, inputs: Inputs, result: Any) -> str:
        """What a call's result is called; that chooses the edge."""
        ...


@dataclass(frozen=True, slots=True)
class WorkflowService:
    """A graph, the costs and the work of its nodes, and the rule that divides a workflow's time.

    `work` names for each node a function that makes its `NodeWork`; the coordinator's process calls it.
    """

    workflow: Workflow
    stages: Mapping[str, StageCost]
    work: Mapping[str, Factory]
    budget: Budget | str = "lookahead"

    def check(self, pools: Iterable[str]) -> None:
        self.workflow.check_served(set(pools))
        if isinstance(self.budget, str):
            make_budget(self.budget)
        for kind, given in (("cost", self.stages), ("work", self.work)):
            missing = [node.name for node in self.workflow.nodes if node.name not in given]
            if missing:
                raise ValueError(f"workflow {self.workflow.name!r}: no {kind} is given for node {', '.join(missing)}")

    def make(self, pools: Iterable[str], tell: Tell) -> Dispatcher:
        work = {name: factory.make() for name, factory in self.work.items()}
        return WorkflowDispatcher(self, work, pools, tell)


@dataclass(slots=True)
class _Live:
    """A workflow under way, beside the core's `Run`."""

    key: str
    job: Job
    inputs: Inputs
    prepared: Prepared = NOTHING
    """The call under way."""
    fault: str | None = None
    """Why the call under way cannot be prepared."""
    replica: str | None = None
    """Where the call under way was sent last."""
    ends: list[tuple[str | None, Ended | None, str | None]] = field(default_factory=list)
    """Replica, end and label of each call that was closed, in the order of the run's visits."""


class WorkflowDispatcher:
    """Carries workflows through the core's coordinator. Implements `Dispatcher`."""

    def __init__(self, service: WorkflowService, work: Mapping[str, NodeWork], pools: Iterable[str], tell: Tell):
        budget = service.budget if not isinstance(service.budget, str) else make_budget(service.budget)
        empty: dict[str, list[Replica]] = {name: [] for name in pools}
        self.work = work
        self.core = Coordinator(service.workflow, service.stages, empty, budget, self._size, self._ended)
        self._tell = tell
        self._live: dict[str, _Live] = {}
        self._runs: dict[str, Run] = {}
        self._key_of: dict[str, str] = {}

    def submit(self, key: str, job: Job, now: float) -> list[Order]:
        deadline = None if job.deadline is None else now + job.deadline
        run = Run(key, self.core.workflow, now, deadline, job.payload)
        self._live[key] = _Live(key, job, Inputs(job.run_id, job.payload))
        self._runs[key] = run
        return self._orders(self.core.submit(run, now), now)

    def heard(self, event: Begun | Grown | Ended, now: float) -> list[Order]:
        key = self._key_of.get(event.call)
        live = self._live.get(key or "")
        if key is None or live is None:
            self.core.num_stale += not isinstance(event, Begun)
            return []
        if isinstance(event, Ended):
            return self._orders(self._call_ended(key, live, event, now), now)
        run = self._runs[key]
        assert run.node is not None
        if isinstance(event, Begun):
            self._watch(live, RunEvent(live.job.run_id, "begun", run.node.name, now - run.arrival))
            return self._orders(self.core.begun(event.call, now), now)
        at = now - run.arrival
        self._watch(live, RunEvent(live.job.run_id, "grown", run.node.name, at, event.units, event.output))
        return self._orders(self.core.delivered(event.call, event.units, now), now)

    def lost(self, pool: str, replica: str, now: float) -> list[Order]:
        for call in self.core.pools[pool].replicas[replica].calls:
            self._key_of.pop(call, None)
        return self._orders(self.core.lost(pool, replica, now), now)

    def gained(self, pool: str, replica: Replica, now: float) -> list[Order]:
        return self._orders(self.core.gained(pool, replica, now), now)

    def drain(self, pool: str, replica: str) -> None:
        self.core.drain(pool, replica)

    def abandon(self, pool: str, reason: str, now: float) -> list[Order]:
        actions: list[Action] = []
        for call in list(self.core.pools[pool].queue):
            actions += self.core.given_up(call, reason, now, Outcome.FAILED)
        return self._orders(actions, now)

    def look(self, now: float) -> list[Order]:
        return self._orders(self.core.look(now), now)

    def abort(self, key: str, reason: str, now: float) -> list[Order]:
        return self._orders(self.core.abort(key, now, reason), now)

    def status(self) -> dict[str, Any]:
        pools = {name: pool_status(len(pool.queue), pool.replicas.values()) for name, pool in self.core.pools.items()}
        return {"num_live": self.core.num_live, "num_stale": self.core.num_stale, "pools": pools}

    # One call.

    def _size(self, run: Run, node: Node) -> int:
        """Prepares the call as the core makes it; a node's mistake must not harm the core, so it is kept for later."""
        live = self._live[run.run_id]
        live.prepared, live.fault, live.replica = NOTHING, None, None
        try:
            live.prepared = self.work[node.name].prepare(live.inputs)
            return max(int(live.prepared.size), 1)
        except Exception as error:
            live.fault = f"{node.name}: its call cannot be prepared: {type(error).__name__}: {error}"
            return 1

    def _call_ended(self, key: str, live: _Live, event: Ended, now: float) -> list[Action]:
        run = self._runs[key]
        assert run.node is not None
        node = run.node.name
        del self._key_of[event.call]
        label: str | None = None
        outcome, reason = event.outcome, event.reason or str(event.outcome)
        if outcome in (Outcome.MET, Outcome.LATE):
            try:
                label = self.work[node].label(live.inputs, event.result)
            except Exception as error:
                outcome, reason = Outcome.FAILED, f"its result has no label: {type(error).__name__}: {error}"
        elif outcome is Outcome.ABORTED:
            outcome = Outcome.FAILED
        live.ends.append((live.replica, event, label))
        at = now - run.arrival
        self._watch(live, RunEvent(live.job.run_id, "ended", node, at, event.units, event.result, label))
        if run.visit.first_unit_at is None and event.first is not None:
            run.visit.first_unit_at = now - max(event.seconds - event.first, 0.0)
        if label is None:
            return self.core.given_up(event.call, f"{node}: {reason}", now, outcome)
        live.inputs.results.append(Result(node, label, event.result))
        return self.core.ended(event.call, label, max(event.units, 1), now)

    def _orders(self, actions: list[Action], now: float) -> list[Order]:
        """Messages for the core's actions. Calls that cannot be prepared fail here, which may lead to more."""
        orders: list[Order] = []
        todo = list(actions)
        while todo:
            action = todo.pop(0)
            pool = self._pool_of(action)
            if not isinstance(action, Send):
                self._key_of.pop(action.call, None)
                orders.append(Order(pool, action.replica, Withdrawal(action.call, action.reason)))
                continue
            live = self._live[action.run.run_id]
            if live.fault is not None:
                live.ends.append((None, None, None))
                todo += self.core.given_up(action.call, live.fault, now, Outcome.FAILED)
                continue
            live.replica = action.replica
            self._key_of[action.call] = action.run.run_id
            self._watch(live, RunEvent(live.job.run_id, "sent", action.node.name, now - action.run.arrival))
            slo = DueSlo.of(action.deadlines, now).fields()
            orders.append(Order(pool, action.replica, Call(action.call, live.prepared.payload, slo)))
        return orders

    def _pool_of(self, action: Action) -> str:
        for name, pool in self.core.pools.items():
            if action.replica in pool.replicas:
                return name
        raise AssertionError(f"no pool has a replica {action.replica!r}")

    # The end of a run.

    def _ended(self, run: Run) -> None:
        """The core has ended a run: its client hears of it."""
        live = self._live.pop(run.run_id)
        del self._runs[run.run_id]
        if len(live.ends) < len(run.visits):  # the call under way was withdrawn, or given up while it waited
            live.ends.append((live.replica, None, None))
        assert run.outcome is not None
        assert run.ended_at is not None
        bound = run.deadline is not None or run.outcome in (Outcome.MET, Outcome.LATE)
        calls = tuple(_report(run, visit, *end) for visit, end in zip(run.visits, live.ends, strict=True))
        seconds, due = run.ended_at - run.arrival, run.due - run.arrival if bound else None
        self._tell(run.run_id, RunReport(live.job.run_id, run.outcome, run.reason, seconds, due, calls))

    def _watch(self, live: _Live, event: RunEvent) -> None:
        if live.job.is_watched:
            self._tell(live.key, event)


def _report(run: Run, visit: Visit, replica: str | None, end: Ended | None, label: str | None) -> CallReport:
    def since(moment: float | None) -> float | None:
        return None if moment is None else moment - run.arrival

    return CallReport(
        node=visit.node.name,
        replica=replica,
        attempt=visit.attempt,
        size=visit.size,
        queued=visit.queued_at - run.arrival,
        sent=since(visit.sent_at),
        first=since(visit.first_unit_at),
        ended=since(visit.ended_at),
        units=visit.units if end is None else end.units,
        units_on_time=0 if end is None else end.units_on_time,
        outcome=None if end is None else end.outcome,
        label=label,
        result=None if end is None else end.result,
    )
