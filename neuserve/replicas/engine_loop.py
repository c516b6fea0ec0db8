"""A driver in a thread of its own: calls in from anywhere, what becomes of them out, in batches, a step at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from neuserve.replicas.messages import Begun, Broken, Call, Ended, Event, Grown
from neustream.driver import Ask, Driver, HasResults, TellsProgress
from neustream.records import StepRecord
from neustream.request import Outcome, Request

IDLE_WAIT = 0.1
"""Seconds after which a driver with work but nothing to run is asked again, if it names no time."""
BLINK = 0.0005
"""Seconds for which a driver with nothing to run is left alone at least."""
MAX_EARLY = 1024
"""Withdrawals that are remembered because they came before their calls."""


@dataclass(slots=True)
class _Live:
    """A call that the driver has."""

    arrival: float
    """On the driver's clock."""
    received: float
    """When it reached the replica, on the driver's clock."""
    has_begun: bool = False


class EngineLoop:
    """Runs a driver, which `build` makes in the loop's own thread, until `close`.

    `tell` hears what became of the calls, from that thread. A driver that raises is broken for good: `Broken` is the
    last that is heard of it. Knows nothing of Ray.
    """

    def __init__(self, build: Callable[[], Driver], tell: Callable[[list[Event]], None]) -> None:
        self.ready: Future[None] = Future()
        """Set once the driver is made; holds the error where it could not be."""
        self.num_steps = 0
        self.step_seconds = 0.0
        self.outcomes: Counter[str] = Counter()
        self.error: str | None = None
        self._build = build
        self._tell = tell
        self._mail: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._live: dict[str, _Live] = {}
        self._early: OrderedDict[str, None] = OrderedDict()
        self._is_closing = False
        self._stepping_since: float | None = None
        self._driver: Driver | None = None
        self._clock: Callable[[], float] = time.time
        self._thread = threading.Thread(target=self._serve, name="neustream-engine", daemon=True)

    def start(self) -> None:
        """Make the driver and serve."""
        self._thread.start()

    def take(self, call: Call) -> None:
        """A call has come. From any thread."""
        received = time.monotonic()
        self._mail.put(lambda: self._submit(call, received))

    def withdraw(self, call: str, reason: str) -> None:
        """A call is no longer wanted; nothing is told of it any more. From any thread, also before the call comes."""
        self._mail.put(lambda: self._withdraw(call, reason))

    def reset(self) -> Future[None]:
        """Drop every call; once the future is set nothing is told of them any more. From any thread."""
        done: Future[None] = Future()
        self._mail.put(lambda: self._reset(done))
        return done

    def close(self, timeout: float | None = None) -> None:
        """Withdraw what has not ended, close the driver and end the thread, waiting for it at most `timeout` s."""
        self._mail.put(self._stop)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def stats(self) -> dict[str, Any]:
        """How it stands: for people and for tests. From any thread."""
        since = self._stepping_since
        return {
            "num_live": len(self._live),
            "num_steps": self.num_steps,
            "step_seconds": self.step_seconds,
            "stepping_for": None if since is None else time.monotonic() - since,
            "outcomes": dict(self.outcomes),
            "error": self.error,
        }

    # What the thread does.

    def _serve(self) -> None:
        try:
            self._driver = driver = self._build()
            self._clock = getattr(driver, "clock", time.time)
        except BaseException as error:
            self.error = _line(error)
            self.ready.set_exception(error)
            return
        self.ready.set_result(None)
        try:
            patience: float | None = None
            while not self._is_closing:
                self._read_mail(patience)
                patience = None
                if driver.num_unfinished and not self._is_closing:
                    patience = self._step(driver)
            driver.close()
        except BaseException as error:
            self._fail(driver, error)

    def _read_mail(self, patience: float | None) -> None:
        """Carry out what has been asked for; waits up to `patience` seconds (None: for ever) for the first of it."""
        try:
            self._mail.get(timeout=patience)() if patience != 0.0 else self._mail.get_nowait()()
            while True:
                self._mail.get_nowait()()
        except queue.Empty:
            return

    def _step(self, driver: Driver) -> float:
        """Run one step and tell of it; returns how many seconds to wait for mail before the next."""
        started = self._stepping_since = time.monotonic()
        record = driver.step()
        self._stepping_since = None
        if record is not None:
            self.num_steps += 1
            self.step_seconds += time.monotonic() - started
        events = self._events(driver, record)
        if events:
            self._tell(events)
        if record is not None and record.request_ids:
            return 0.0
        if any(isinstance(event, Ended) for event in events):
            return 0.0
        if driver.wake is not None:
            return min(max(driver.wake - self._clock(), BLINK), IDLE_WAIT)
        return IDLE_WAIT if record is None else BLINK

    def _events(self, driver: Driver, record: StepRecord | None) -> list[Event]:
        events: list[Event] = []
        for name in record.request_ids if record is not None else ():
            live = self._live.get(name)
            if live is not None and not live.has_begun:
                live.has_begun = True
                events.append(Begun(name))
        if isinstance(driver, TellsProgress):
            events += [
                Grown(news.request_id, news.units, news.output)
                for news in driver.take_progress()
                if news.request_id in self._live
            ]
        return events + self._ends(driver)

    def _ends(self, driver: Driver) -> list[Event]:
        """What the driver says has ended, but for calls that were withdrawn."""
        ended = driver.take_ended()
        if not ended:
            return []
        has_results = isinstance(driver, HasResults)
        events: list[Event] = []
        for request in ended:
            self.outcomes[str(request.outcome)] += 1
            live = self._live.pop(request.request_id, None)
            if live is None:
                continue
            result = driver.take_result(request.request_id) if has_results else None  # type: ignore[attr-defined]
            events.append(_ended(request, live, result))
        return events

    # What mail asks for.

    def _submit(self, call: Call, received: float) -> None:
        assert self._driver is not None
        if call.call in self._early:
            del self._early[call.call]
            return
        now = self._clock()
        reached = now - (time.monotonic() - received)
        arrival = reached - call.waited
        self._live[call.call] = _Live(arrival, reached)
        try:
            self._driver.submit(Ask(call.call, arrival, call.payload, call.slo, call.on_miss))
        except ValueError as error:
            del self._live[call.call]
            self.outcomes[str(Outcome.FAILED)] += 1
            self._tell([Ended(call.call, Outcome.FAILED, _line(error), seconds=now - reached)])

    def _withdraw(self, call: str, reason: str) -> None:
        assert self._driver is not None
        if self._live.pop(call, None) is not None:
            self._driver.abort(call, reason)
            return
        self._early[call] = None
        while len(self._early) > MAX_EARLY:
            self._early.popitem(last=False)

    def _reset(self, done: Future[None]) -> None:
        assert self._driver is not None
        self._live.clear()
        self._early.clear()
        self._driver.abort_all("its coordinator has gone")
        for request in self._driver.take_ended():
            self.outcomes[str(request.outcome)] += 1
        done.set_result(None)

    def _stop(self) -> None:
        self._is_closing = True

    def _fail(self, driver: Driver, error: BaseException) -> None:
        """The driver broke: what has ended is told still, then that it is broken."""
        self.error = _line(error)
        events: list[Event] = []
        try:
            events = [event for event in self._ends(driver) if event.outcome is not Outcome.ABORTED]  # type: ignore[union-attr]
        except Exception as second:
            self.error += f" (and then {_line(second)})"
        self._tell([*events, Broken(self.error)])


def _ended(request: Request, live: _Live, result: Any) -> Ended:
    assert request.outcome is not None
    assert request.ended_at is not None
    first = request.first_unit_at
    return Ended(
        request.request_id,
        request.outcome,
        request.reason,
        request.units,
        request.units_on_time,
        None if first is None else first - live.received,
        request.ended_at - live.received,
        result,
    )


def _line(error: BaseException) -> str:
    """An error in one line: a caller's mistake by its message, any other by its type too."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")
