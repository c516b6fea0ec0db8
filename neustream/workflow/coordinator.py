"""The coordinator: workflows come in, calls go out to replicas, results come back; who ends, when, and why.

It is a plain object that is told what happened and when, and answers with what to do. In service an actor puts it on
Ray; in the simulator it stands on an event queue; in tests it is called by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from neustream.request import Outcome
from neustream.slo import Deadlines
from neustream.workflow.budget import Budget
from neustream.workflow.forecast import Forecast
from neustream.workflow.graph import Node, Workflow
from neustream.workflow.pool import Binding, Pool, Replica
from neustream.workflow.run import Run
from neustream.workflow.stage import StageCost

MAX_ATTEMPTS = 3
"""How often a call is sent in all before its workflow fails."""

SizeOf = Callable[[Run, Node], int]
"""Units of input that a call of a node will have, from what the run has produced so far."""


@dataclass(frozen=True, slots=True)
class Send:
    """A call goes to a replica. Idempotent by `call`: a result that comes for another attempt is thrown away."""

    call: str
    run: Run
    node: Node
    replica: str
    deadlines: Deadlines
    """On the coordinator's clock; they cross machines as remaining seconds."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A replica must drop a call."""

    call: str
    replica: str
    reason: str


Action = Send | Withdraw


class Coordinator:
    """Serves workflows of one graph over pools of replicas, under one budget rule.

    Every method that may free or take a place returns the actions to carry out, in order. `on_end` gets each workflow
    once, with its outcome. Raises ValueError where a node has no pool.
    """

    def __init__(
        self,
        workflow: Workflow,
        stages: Mapping[str, StageCost],
        replicas: Mapping[str, Iterable[Replica]],
        budget: Budget,
        size_of: SizeOf,
        on_end: Callable[[Run], None],
        binding: Binding = "late",
    ) -> None:
        workflow.check_served(set(replicas))
        self.workflow = workflow
        self.budget = budget
        self.forecast = Forecast(workflow, stages)
        self.size_of = size_of
        self.on_end = on_end
        self.pools = {name: Pool(name, members, self._rank, binding) for name, members in replicas.items()}
        self.num_stale = 0
        """Results that came for a call which was no longer wanted."""
        self._runs: dict[str, Run] = {}
        self._calls: dict[str, tuple[Run, Deadlines]] = {}
        self._call_of: dict[str, str] = {}
        self._at: dict[str, int] = {node.name: 0 for node in workflow.nodes}
        self._ids = itertools.count()

    @property
    def num_live(self) -> int:
        """Workflows that have not ended."""
        return len(self._runs)

    def submit(self, run: Run, now: float) -> list[Action]:
        """A workflow has come. Raises ValueError for an id in use."""
        if run.run_id in self._runs:
            raise ValueError(f"workflow id {run.run_id!r} is in use")
        self._runs[run.run_id] = run
        ahead = self._waiting_ahead(self.workflow.start.name)
        return self._enter(run, self.workflow.start, now, ahead)

    def delivered(self, call: str, units: int, now: float) -> list[Action]:
        """A call has delivered `units` output units so far. The first of them frees its replica's credit."""
        if call not in self._calls:
            self.num_stale += 1
            return []
        run, _ = self._calls[call]
        visit = run.visit
        if units and visit.first_unit_at is None:
            visit.first_unit_at = now
        visit.units = units
        return self.begun(call, now)

    def progress(self, call: str, units: int) -> None:
        """A running call has delivered `units` units by now; forecasts of what remains read it."""
        if call in self._calls:
            self._calls[call][0].visit.units = units

    def begun(self, call: str, now: float) -> list[Action]:
        """A replica has begun a call."""
        if call not in self._calls:
            return []
        run, _ = self._calls[call]
        assert run.node is not None
        pool = self.pools[run.node.pool_name]
        pool.begun(call)
        return self._send(pool, now)

    def ended(self, call: str, label: str, units: int, now: float) -> list[Action]:
        """A call has ended with a result `label`, which chooses the way on, after `units` output units."""
        if call not in self._calls:
            self.num_stale += 1
            return []
        run, node, pool = self._close(call, now)
        visit = run.visit
        visit.units = units
        stage = self.forecast.nodes[node.name].stage
        granted_until = stage.deadlines(run.granted_until, visit.size).at(units)
        edge = run.leave(label, granted_until, now)
        self.forecast.finished(visit, edge)
        reason = self.budget.why_stop(now, run)
        actions = self._send(pool, now)
        if reason is not None:
            self._end(run, now, Outcome.REJECTED, reason)
        elif edge is None:
            self._end(run, now)
        else:
            actions += self._enter(run, self.workflow[edge.target], now, 0.0)
        return actions

    def given_up(self, call: str, reason: str, now: float, outcome: Outcome = Outcome.REJECTED) -> list[Action]:
        """A replica has given a call up (its policy), or could not run it (`Outcome.FAILED`); so the workflow ends."""
        if call not in self._calls:
            self.num_stale += 1
            return []
        run, _, pool = self._close(call, now)
        run.visit.ended_at = now
        self._end(run, now, outcome, reason)
        return self._send(pool, now)

    def abort(self, run_id: str, now: float, reason: str = "aborted") -> list[Action]:
        """The client withdraws a workflow; nothing happens where no such workflow is live."""
        run = self._runs.get(run_id)
        return [] if run is None else self._drop(run, now, Outcome.ABORTED, reason)

    def look(self, now: float) -> list[Action]:
        """Give up every workflow that the budget rule says is hopeless by now. To be called now and then."""
        actions: list[Action] = []
        for run in list(self._runs.values()):
            reason = self.budget.why_hopeless(now, run, self.forecast, 0.0)
            if reason is not None:
                actions += self._drop(run, now, Outcome.REJECTED, reason)
        return actions

    def lost(self, pool_name: str, replica: str, now: float) -> list[Action]:
        """A replica is gone. Its calls are made again elsewhere if time is left, with their deadlines unchanged."""
        pool = self.pools[pool_name]
        actions: list[Action] = []
        for call in pool.lose(replica):
            run, deadlines = self._calls.pop(call)
            assert run.node is not None
            visit = run.visit
            visit.attempt += 1
            visit.units, visit.sent_at, visit.first_unit_at = 0, None, None
            if visit.attempt >= MAX_ATTEMPTS:
                self._forget(run, call)
                self._end(run, now, Outcome.FAILED, f"{run.node.name}: lost its replica {visit.attempt} times")
                continue
            reason = self.budget.why_hopeless(now, run, self.forecast, 0.0)
            if reason is not None:
                self._forget(run, call)
                self._end(run, now, Outcome.REJECTED, f"{reason} (its replica {replica} was lost)")
                continue
            again = self._name(run)
            self._calls[again] = run, deadlines
            self._call_of[run.run_id] = again
            pool.add(again)
        return actions + self._send(pool, now)

    def gained(self, pool_name: str, replica: Replica, now: float) -> list[Action]:
        """A replica has come."""
        pool = self.pools[pool_name]
        pool.gain(replica)
        return self._send(pool, now)

    def drain(self, pool_name: str, replica: str) -> None:
        """Send no further calls to a replica; those that it has go on."""
        self.pools[pool_name].replicas[replica].is_open = False

    def check_integrity(self) -> None:
        """Assert that every live workflow has one call, in one place."""
        assert set(self._call_of) == set(self._runs)
        assert set(self._call_of.values()) == set(self._calls)
        assert sum(len(pool) for pool in self.pools.values()) == len(self._calls)
        assert sum(self._at.values()) == len(self._runs)
        for pool in self.pools.values():
            pool.check_integrity()

    # What happens to one run.

    def _enter(self, run: Run, node: Node, now: float, waiting: float) -> list[Action]:
        """The workflow's next call is made, and queues."""
        run.enter(node, self.size_of(run, node), now)
        reason = self.budget.why_hopeless(now, run, self.forecast, waiting)
        if reason is not None:
            self._end(run, now, Outcome.REJECTED, reason)
            return []
        call = self._name(run)
        self._calls[call] = run, self.budget.bind(now, run, self.forecast)
        self._call_of[run.run_id] = call
        self._at[node.name] += 1
        pool = self.pools[node.pool_name]
        pool.add(call)
        return self._send(pool, now)

    def _send(self, pool: Pool, now: float) -> list[Action]:
        actions: list[Action] = []
        for call, replica in pool.send():
            run, deadlines = self._calls[call]
            assert run.node is not None
            run.visit.sent_at = now
            actions.append(Send(call, run, run.node, replica, deadlines))
        return actions

    def _drop(self, run: Run, now: float, outcome: Outcome, reason: str) -> list[Action]:
        """End a live workflow and withdraw its call."""
        call = self._call_of[run.run_id]
        assert run.node is not None
        replica = self.pools[run.node.pool_name].place(call)
        _, _, pool = self._close(call, now)
        self._end(run, now, outcome, reason)
        withdrawn: list[Action] = [Withdraw(call, replica, reason)] if replica is not None else []
        return withdrawn + self._send(pool, now)

    def _close(self, call: str, now: float) -> tuple[Run, Node, Pool]:
        run, _ = self._calls.pop(call)
        node = run.node
        assert node is not None
        pool = self.pools[node.pool_name]
        pool.ended(call, now)
        self._forget(run, call)
        return run, node, pool

    def _forget(self, run: Run, call: str) -> None:
        assert run.node is not None
        self._calls.pop(call, None)
        del self._call_of[run.run_id]
        self._at[run.node.name] -= 1

    def _end(self, run: Run, now: float, outcome: Outcome | None = None, reason: str | None = None) -> None:
        del self._runs[run.run_id]
        run.end(now, outcome, reason)
        self.on_end(run)

    def _rank(self, call: str) -> float:
        """The pool's order: the least time to spare before the first unit must be begun."""
        run, deadlines = self._calls[call]
        assert run.node is not None
        return deadlines.at(1) - self.forecast.nodes[run.node.name].stage.alone(run.visit.size, 1)

    def _waiting_ahead(self, start: str) -> float:
        """Seconds for which a workflow that comes now queues at least, at the pools on its way.

        At each pool it comes after the calls that live workflows are still expected to make there. While it is on its
        way to a pool, the pool works off its queue. A pool where no call waits has room, whoever is on the way to it.
        """
        waited, t = 0.0, 0.0
        path = {start: 1.0, **self.forecast.visits_after(start)}
        for name, share in path.items():
            history, pool = self.forecast.nodes[name], self.pools[self.workflow[name].pool_name]
            begin = max(t, pool.wait(self._calls_ahead(pool))) if pool.has_waiting else t
            waited += begin - t
            t = begin + share * history.alone() * history.stretch
        return waited

    def _calls_ahead(self, pool: Pool) -> float:
        """Calls that the live workflows are expected to make at a pool; those that run there count half."""
        ahead = -0.5 * pool.num_running
        for name, count in self._at.items():
            if not count:
                continue
            own = 1.0 if self.workflow[name].pool_name == pool.name else 0.0
            later = self.forecast.visits_after(name)
            ahead += count * (own + sum(s for n, s in later.items() if self.workflow[n].pool_name == pool.name))
        return max(ahead, 0.0)

    def _name(self, run: Run) -> str:
        """A call's id: workflow, node, visit, attempt; never the same twice."""
        assert run.node is not None
        return f"{run.run_id}/{run.node.name}/{len(run.visits)}.{run.visit.attempt}/{next(self._ids)}"
