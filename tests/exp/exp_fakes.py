"""A bench without an engine: every request takes the same time, and some things can be made to go wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from exp.harness.settings import Setting
from neustream import Deadlines, Outcome, Request, Stage
from neustream.driver import Ask
from neustream.records import StepRecord


class FakeDriver:
    """Serves all it has in steps of `seconds`; a request ends after two steps. `on_steps[n]` is called in step n."""

    wake: float | None = None

    def __init__(self, seconds: float, on_steps: dict[int, Callable[[], None]]) -> None:
        self.seconds = seconds
        self.on_steps = on_steps
        self.requests: list[Request] = []
        self.submitted: list[str] = []
        self.ended: list[Request] = []
        self.steps = 0
        self.is_closed = False

    @property
    def num_unfinished(self) -> int:
        return len(self.requests)

    def submit(self, ask: Ask) -> None:
        deadlines = Deadlines(first=ask.arrival + ask.payload["slo"])
        self.requests.append(Request(ask.request_id, ask.arrival, deadlines, (Stage("work", 2),)))
        self.submitted.append(ask.request_id)

    def step(self) -> StepRecord | None:
        start = time.time()
        self.steps += 1
        self.on_steps.get(self.steps, lambda: None)()
        time.sleep(self.seconds)
        batch = list(self.requests)
        for request in batch:
            if request.advance(time.time()):
                request.end(time.time())
                self.requests.remove(request)
                self.ended.append(request)
        seconds = time.time() - start
        return StepRecord(
            time=start,
            kind="work",
            request_ids=tuple(request.request_id for request in batch),
            seconds=seconds,
            decision_seconds=seconds / 200,
            schedule_seconds=seconds / 100,
            predicted_seconds=seconds / 2,
            extra={"num_queued": len(batch)},
        )

    def take_ended(self) -> list[Request]:
        ended, self.ended = self.ended, []
        return ended

    def abort(self, request_id: str, reason: str = "aborted") -> None:
        for request in [request for request in self.requests if request.request_id == request_id]:
            self.requests.remove(request)
            request.end(time.time(), Outcome.ABORTED, reason)
            self.ended.append(request)

    def abort_all(self, reason: str = "aborted") -> None:
        for request in list(self.requests):
            self.abort(request.request_id, reason)

    def close(self) -> None:
        self.abort_all()
        self.is_closed = True


class FakeBench:
    """`num_asks` asks at the setting's rate, evenly spaced; every second one has an SLO that cannot be met."""

    def __init__(self, num_asks: int = 10, seconds: float = 0.002, **on_steps: Callable[[], None]) -> None:
        self.num_asks = num_asks
        self.seconds = seconds
        self.on_steps = {int(name.removeprefix("step")): action for name, action in on_steps.items()}
        self.drivers: list[FakeDriver] = []

    def asks(self, setting: Setting) -> list[Ask]:
        slos = (10.0, 1e-6)
        return [Ask(f"r{i}", i / setting["rate"], {"slo": slos[i % 2]}) for i in range(self.num_asks)]

    def driver(self, setting: Setting) -> FakeDriver:
        self.drivers.append(FakeDriver(self.seconds, self.on_steps))
        return self.drivers[-1]


def send_signal(number: int = signal.SIGINT) -> None:
    """What the terminal does on Ctrl-C."""
    os.kill(os.getpid(), number)
