"""A simulated device as a driver: requests in, steps in virtual time, requests out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from neusim.sim.device import Device
from neusim.sim.engine import Engine, Handler
from neusim.sim.events import EventQueue, Priority
from neusim.sim.prefixes import Prefix
from neustream.driver import Ask, Callbacks, Observer
from neustream.policies import StepPolicy
from neustream.records import StepRecord
from neustream.request import Outcome, Request
from neustream.route import Route
from neustream.slo import NO_DEADLINES, parse_slo
from neustream.tables import LatencyTable


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """What a simulated device needs of an ask, as its payload."""

    route: Route
    size: int = 1
    """Tokens of a prompt; 1 for an image."""


class SimulatedDriver:
    """Serves requests on a simulated device. Implements `neustream.driver.Driver`.

    Its clock is `now`, in seconds of virtual time. A call of `step` passes the time until the next step ends. While
    nothing runs, time passes in `wait` only. An ask may be submitted before its `arrival`; it enters then. Where
    several processes run at once, a request that is submitted later than it arrives may enter after a step has ended
    that it would have come before.

    `make_policy` makes the policy of each process; `seed`, `num_units` and `prefix` are those of `Engine`.
    """

    def __init__(
        self,
        table: LatencyTable,
        device: Device,
        make_policy: Callable[[], StepPolicy],
        *,
        seed: int = 0,
        num_units: Callable[[Request], int] | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        self.table = table
        self.now = 0.0
        self._events: EventQueue[Handler] = EventQueue()
        observer = Callbacks(self._note_end, self._note_step)
        self._engine = Engine(
            table, device, make_policy, observer, events=self._events, seed=seed, num_units=num_units, prefix=prefix
        )
        self._open: dict[str, Request] = {}
        self._coming: set[str] = set()
        """Ids of the open requests that have not entered the device."""
        self._ended: list[Request] = []
        self._record: StepRecord | None = None

    @property
    def num_unfinished(self) -> int:
        """Requests that were submitted and have not ended."""
        return len(self._open)

    @property
    def spared(self) -> float | None:
        """Share of the admitted prompts' tokens that a prefix cache spared; None without one."""
        return self._engine.spared

    @property
    def wake(self) -> float | None:
        """After a step with nothing to run: when something happens next, or None: when a request is submitted."""
        return self._events.next_time if self._open else None

    def submit(self, ask: Ask) -> None:
        """Take a request; its payload is a `SimulatedRequest`. Without an SLO it has no deadline.

        Raises ValueError, one line, for bad input, an id in use, or a module that the table does not have.
        """
        asked = ask.payload
        if not isinstance(asked, SimulatedRequest):
            raise ValueError(f"request {ask.request_id!r}: its payload must be a SimulatedRequest, got {asked!r:.60}")
        slo = None if ask.slo is None else parse_slo(ask.slo)
        deadlines = slo.bind(ask.arrival, asked.route, asked.size, self.table) if slo is not None else NO_DEADLINES
        on_miss = ask.on_miss or "reject"
        self.add(Request(ask.request_id, ask.arrival, deadlines, asked.route, asked.size, on_miss=on_miss))

    def add(self, request: Request) -> None:
        """Take a core request, which enters when it arrives. Raises ValueError as `submit` does."""
        self._add(request, iter(()))

    def step(self) -> StepRecord | None:
        """Run on until a step has ended; None where nothing runs before `wake`. What it ended is to be taken."""
        self._record = None
        while (when := self._events.next_time) is not None:
            if when > self.now and not self._engine.is_running:
                return None
            self.now = max(self.now, when)
            when, handle = self._events.pop()
            handle(when)
            if self._record is not None:
                return self._record
        return None

    def wait(self, until: float) -> None:
        """Let time pass while nothing runs: until `wake`, or until the next arrival if that is earlier."""
        self.now = max(self.now, until)

    def take_ended(self) -> list[Request]:
        """The requests that have ended since the last call, each once, their outcome set."""
        ended, self._ended = self._ended, []
        return ended

    def abort(self, request_id: str, reason: str = "aborted") -> None:
        """Withdraw a request; nothing happens where no such request is live. A step under way goes on without it."""
        request = self._open.get(request_id)
        if request is None:
            return
        if request_id in self._coming:
            self._coming.remove(request_id)
            request.end(self.now, Outcome.ABORTED, reason)
            self._note_end(request)
        else:
            self._engine.abort(request, self.now, reason)

    def abort_all(self, reason: str = "aborted") -> None:
        """Withdraw whatever has not ended."""
        for request_id in list(self._open):
            self.abort(request_id, reason)

    def close(self) -> None:
        """Withdraw whatever has not ended; `take_ended` still tells of it."""
        self.abort_all("the simulated device was closed")

    def run(self, requests: Iterator[Request], observer: Observer) -> None:
        """Serve `requests`, which come in order of arrival, until all have ended; each is made as the last arrives.

        `observer` hears of every step and every end. Raises ValueError as `submit` does, or for a wrong order.
        """
        self._expect(requests)
        while self._open:
            record = self.step()
            if record is not None:
                observer.on_step(record)
            for request in self.take_ended():
                observer.on_end(request)
            if record is None and self._open:
                assert self.wake is not None, f"idle for ever with {len(self._open)} requests"
                self.wait(self.wake)
        self.check_integrity()

    def check_integrity(self) -> None:
        """Assert the invariants of the device's streams and memory."""
        self._engine.check_integrity()

    def _add(self, request: Request, following: Iterator[Request]) -> None:
        name = request.request_id
        if name in self._open:
            raise ValueError(f"request id {name!r} is in use")
        unknown = [stage.module for stage in request.route if stage.module not in self.table]
        if unknown:
            raise ValueError(f"{request!r}: the table of {self.table.model} has no module {unknown[0]!r}")
        self._open[name] = request
        self._coming.add(name)
        enter = partial(self._enter, request, following)
        self._events.push(max(request.arrival, self.now), Priority.ENTERS, enter)

    def _enter(self, request: Request, following: Iterator[Request], now: float) -> None:
        if request.outcome is None:  # else it was withdrawn before it came
            self._coming.remove(request.request_id)
            self._engine.submit(request, now)
        self._expect(following)

    def _expect(self, requests: Iterator[Request]) -> None:
        """Submit the next request only: no more of them exist than are in the device, and one."""
        request = next(requests, None)
        if request is None:
            return
        if request.arrival < self.now:
            raise ValueError(f"{request!r} arrived at {request.arrival}, before the one ahead of it, {self.now}")
        self._add(request, requests)

    def _note_end(self, request: Request) -> None:
        del self._open[request.request_id]
        self._ended.append(request)

    def _note_step(self, record: StepRecord) -> None:
        self._record = record
