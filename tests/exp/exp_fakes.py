"""A bench without an engine: every job takes the same time, and some things can be made to go wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from exp.harness.client import Job
from exp.harness.runner import OnStep
from exp.harness.settings import Setting
from neustream import Deadlines, Outcome, Request, Stage


class FakeServer:
    """Serves all it has in steps of `seconds`; a request ends after two steps. `on_steps[n]` is called in step n."""

    def __init__(self, on_step: OnStep, seconds: float, on_steps: dict[int, Callable[[], None]]) -> None:
        self.on_step = on_step
        self.seconds = seconds
        self.on_steps = on_steps
        self.requests: list[Request] = []
        self.submitted: list[str] = []
        self.steps = 0

    @property
    def num_unfinished(self) -> int:
        return len(self.requests)

    def submit(self, request_id: str, arrival: float, payload: Any) -> None:
        deadlines = Deadlines(first=arrival + payload["slo"])
        self.requests.append(Request(request_id, arrival, deadlines, (Stage("work", 2),)))
        self.submitted.append(request_id)

    def step(self) -> list[Request]:
        start = time.time()
        self.steps += 1
        self.on_steps.get(self.steps, lambda: None)()
        time.sleep(self.seconds)
        batch = list(self.requests)
        ended = [request for request in batch if request.advance(time.time())]
        for request in ended:
            request.end(time.time())
            self.requests.remove(request)
        seconds = time.time() - start
        self.on_step(
            {
                "time": start,
                "module": "work",
                "batch_size": len(batch),
                "seconds": seconds,
                "schedule_seconds": seconds / 100,
                "predicted_seconds": seconds / 2,
            }
        )
        return ended

    def abort_all(self) -> list[Request]:
        left, self.requests = self.requests, []
        for request in left:
            request.end(time.time(), Outcome.ABORTED, "the run ended")
        return left


class FakeBench:
    """`num_jobs` jobs at the setting's rate, evenly spaced; every second one has an SLO that cannot be met."""

    def __init__(self, num_jobs: int = 10, seconds: float = 0.002, **on_steps: Callable[[], None]) -> None:
        self.num_jobs = num_jobs
        self.seconds = seconds
        self.on_steps = {int(name.removeprefix("step")): action for name, action in on_steps.items()}
        self.servers: list[FakeServer] = []

    def jobs(self, setting: Setting) -> list[Job]:
        slos = (10.0, 1e-6)
        return [Job(f"r{i}", i / setting["rate"], {"slo": slos[i % 2]}) for i in range(self.num_jobs)]

    def server(self, setting: Setting, on_step: OnStep) -> FakeServer:
        self.servers.append(FakeServer(on_step, self.seconds, self.on_steps))
        return self.servers[-1]


def send_signal(number: int = signal.SIGINT) -> None:
    """What the terminal does on Ctrl-C."""
    os.kill(os.getpid(), number)
