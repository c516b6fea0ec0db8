"""Plain requests over one pool of replicas: late binding and retries, each request under the SLO that it brought."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from neuserve.replicas.dispatch import Dispatcher, Order, Tell, pool_status
from neuserve.replicas.messages import Begun, Call, CallReport, Ended, Grown, Job, RunEvent, RunReport, Withdrawal
from neustream.request import Outcome
from neustream.slo import parse_slo
from neustream.workflow.coordinator import MAX_ATTEMPTS
from neustream.workflow.pool import Pool, Replica


@dataclass(frozen=True, slots=True)
class RequestService:
    """Serves requests as they come, each by one call. The pool must be the only one."""

    node: str = "request"
    """What the call is named in reports."""

    def check(self, pools: Iterable[str]) -> None:
        names = list(pools)
        if len(names) != 1:
            raise ValueError(f"plain requests are served by one pool; there are {', '.join(names) or 'none'}")

    def make(self, pools: Iterable[str], tell: Tell) -> Dispatcher:
        (pool,) = pools
        return RequestDispatcher(pool, self.node, tell)


@dataclass(slots=True)
class _Live:
    """A request that has not ended."""

    key: str
    job: Job
    arrival: float
    call: str
    attempt: int = 0
    sent: float | None = None
    first: float | None = None
    replica: str | None = None


class RequestDispatcher:
    """One pool, in the order of arrival; a replica's own policy chooses among those that it was sent.

    Implements `Dispatcher`. The outcome of a request is its replica's.
    """

    def __init__(self, pool: str, node: str, tell: Tell) -> None:
        self.pool = Pool(pool, (), lambda call: self._calls[call].arrival)
        self.node = node
        self.num_stale = 0
        self._tell = tell
        self._runs: dict[str, _Live] = {}
        self._calls: dict[str, _Live] = {}

    def submit(self, key: str, job: Job, now: float) -> list[Order]:
        live = _Live(key, job, now - job.waited, f"{key}/{self.node}/0")
        self._runs[key] = self._calls[live.call] = live
        try:
            if job.slo is not None:
                parse_slo({name: value for name, value in job.slo.items() if name != "on_miss"})
        except ValueError as error:
            self._end(live, now, Outcome.FAILED, str(error))
            return []
        self.pool.add(live.call)
        return self._send(now)

    def heard(self, event: Begun | Grown | Ended, now: float) -> list[Order]:
        live = self._calls.get(event.call)
        if live is None:
            self.num_stale += not isinstance(event, Begun)
            return []
        at = now - live.arrival
        if isinstance(event, Ended):
            self.pool.ended(event.call, now)
            if live.first is None and event.first is not None:
                live.first = max(at - (event.seconds - event.first), 0.0)
            outcome = Outcome.FAILED if event.outcome is Outcome.ABORTED else event.outcome
            self._watch(live, RunEvent(live.job.run_id, "ended", self.node, at, event.units, event.result))
            self._end(live, now, outcome, event.reason, event)
            return self._send(now)
        if isinstance(event, Grown):
            live.first = at if live.first is None else live.first
            self._watch(live, RunEvent(live.job.run_id, "grown", self.node, at, event.units, event.output))
        else:
            self._watch(live, RunEvent(live.job.run_id, "begun", self.node, at))
        self.pool.begun(event.call)
        return self._send(now)

    def lost(self, pool: str, replica: str, now: float) -> list[Order]:
        for call in self.pool.lose(replica):
            live = self._calls.pop(call)
            live.attempt += 1
            live.sent = live.first = None
            if live.attempt >= MAX_ATTEMPTS:
                self._end(live, now, Outcome.FAILED, f"lost its replica {live.attempt} times")
                continue
            live.call = f"{live.key}/{self.node}/{live.attempt}"
            self._calls[live.call] = live
            self.pool.add(live.call)
        return self._send(now)

    def gained(self, pool: str, replica: Replica, now: float) -> list[Order]:
        self.pool.gain(replica)
        return self._send(now)

    def drain(self, pool: str, replica: str) -> None:
        self.pool.replicas[replica].is_open = False

    def abandon(self, pool: str, reason: str, now: float) -> list[Order]:
        for call in list(self.pool.queue):
            self.pool.ended(call, now)
            self._end(self._calls[call], now, Outcome.FAILED, reason)
        return []

    def look(self, now: float) -> list[Order]:
        return []

    def abort(self, key: str, reason: str, now: float) -> list[Order]:
        live = self._runs.get(key)
        if live is None:
            return []
        replica = self.pool.place(live.call)
        self.pool.ended(live.call, now)
        self._end(live, now, Outcome.ABORTED, reason)
        withdrawn = [] if replica is None else [Order(self.pool.name, replica, Withdrawal(live.call, reason))]
        return withdrawn + self._send(now)

    def status(self) -> dict[str, Any]:
        pools = {self.pool.name: pool_status(len(self.pool.queue), self.pool.replicas.values())}
        return {"num_live": len(self._runs), "num_stale": self.num_stale, "pools": pools}

    def _send(self, now: float) -> list[Order]:
        orders = []
        for name, replica in self.pool.send():
            live = self._calls[name]
            live.sent, live.replica = now - live.arrival, replica
            call = Call(name, live.job.payload, live.job.slo, live.job.on_miss, now - live.arrival)
            orders.append(Order(self.pool.name, replica, call))
            self._watch(live, RunEvent(live.job.run_id, "sent", self.node, live.sent))
        return orders

    def _end(self, live: _Live, now: float, outcome: Outcome, reason: str | None, end: Ended | None = None) -> None:
        del self._runs[live.key]
        self._calls.pop(live.call, None)
        seconds = now - live.arrival
        report = CallReport(
            node=self.node,
            replica=live.replica,
            attempt=live.attempt,
            size=1,
            queued=live.job.waited,
            sent=live.sent,
            first=live.first,
            ended=seconds,
            units=0 if end is None else end.units,
            units_on_time=0 if end is None else end.units_on_time,
            outcome=None if end is None else end.outcome,
            result=None if end is None else end.result,
        )
        self._tell(live.key, RunReport(live.job.run_id, outcome, reason, seconds, None, (report,)))

    def _watch(self, live: _Live, event: RunEvent) -> None:
        if live.job.is_watched:
            self._tell(live.key, event)
