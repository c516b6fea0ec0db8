"""A driver that takes a latency table's word, in real time: tries a deployment without its engines, and tests one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neustream.cost import step_seconds
from neustream.driver import Ask, Callbacks, Progress
from neustream.history import StepHistory
from neustream.loop import StepLoop, StepResult
from neustream.plan import Limits, StepPlan
from neustream.policies import make_policy
from neustream.policies.seats import WithSeats
from neustream.records import StepRecord
from neustream.request import OnMiss, Request
from neustream.route import DECODE, Route, Stage, llm_route
from neustream.slo import NO_DEADLINES, parse_slo
from neustream.streams import Streams
from neustream.tables import LatencyTable, load_table

KEYS = {"size", "units", "result", "fail", "crash"}


def build(
    table: LatencyTable | str | Path, *, policy: str = "fcfs", speed: float = 1.0, max_batch: int = 16
) -> StandIn:
    """A stand-in for a device with this table; `speed` 10 makes its steps ten times as fast."""
    return StandIn(table if isinstance(table, LatencyTable) else load_table(table), policy, speed, max_batch)


class StandIn:
    """Sleeps where an engine would work. Implements `neustream.driver.Driver`.

    A payload is a mapping: `size` (units of input, 1) and `units` (output units of a language model, 1), what to hand
    out (`result`), `fail` (a reason: the call fails once it has run) and `crash` (True: the process is killed).
    """

    def __init__(self, table: LatencyTable, policy: str, speed: float, max_batch: int) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be above 0, got {speed:g}")
        self.table, self.speed = table, speed
        self.clock = time.monotonic
        self.wake: float | None = None
        self.streams = Streams(table.modules)
        self._limits = Limits(max_batch=dict.fromkeys(table.modules, max_batch))
        observer = Callbacks(self._has_ended, self._has_stepped)
        chosen = WithSeats(make_policy(policy, table)) if DECODE not in table else make_policy(policy, table)
        self.loop = StepLoop(chosen, self.streams, self, self.clock, observer, StepHistory(table))
        self._payloads: dict[str, Mapping[str, Any]] = {}
        self._told: dict[str, int] = {}
        self._ended: list[Request] = []
        self._taken: dict[str, Any] = {}
        self._record: StepRecord | None = None

    # The executor of its loop.

    def limits(self) -> Limits:
        """As many as `max_batch` at once."""
        return self._limits

    def run(self, plan: StepPlan) -> StepResult:
        """Sleep for as long as the table says."""
        payloads = {request.request_id: self._payloads[request.request_id] for request in plan.batch}
        if any(payload.get("crash") for payload in payloads.values()):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(step_seconds(self.table, plan) / self.speed)
        return StepResult({name: payload["fail"] for name, payload in payloads.items() if payload.get("fail")})

    # The driver.

    def submit(self, ask: Ask) -> None:
        """Take a request. Raises ValueError for a payload of another form, and an SLO that cannot be understood."""
        payload = ask.payload
        if not isinstance(payload, Mapping) or not set(payload) <= KEYS:
            raise ValueError(f"its payload must be a mapping with keys among {', '.join(sorted(KEYS))}")
        fields = dict(ask.slo or {})
        on_miss: OnMiss = ask.on_miss or fields.pop("on_miss", None) or "reject"
        size, route = int(payload.get("size", 1)), self._route(int(payload.get("units", 1)))
        deadlines = parse_slo(fields).bind(ask.arrival, route, size, self.table) if fields else NO_DEADLINES
        self.streams.add(Request(ask.request_id, ask.arrival, deadlines, route, size, on_miss=on_miss))
        self._payloads[ask.request_id] = payload

    def step(self) -> StepRecord | None:
        """Run one step."""
        self._record = None
        self.wake = self.loop.step().wake
        return self._record

    def take_ended(self) -> list[Request]:
        """The requests that have ended since the last call."""
        ended, self._ended = self._ended, []
        self._taken = {request.request_id: self._forget(request).get("result") for request in ended}
        return ended

    def take_result(self, request_id: str) -> Any:
        """The `result` that the payload of a request of the last `take_ended` named."""
        return self._taken[request_id]

    def take_progress(self) -> list[Progress]:
        """The live requests that have delivered units; the output is how many are new."""
        news = []
        for request in self.streams:
            told = self._told.get(request.request_id, 0)
            if request.units > told:
                self._told[request.request_id] = request.units
                news.append(Progress(request.request_id, request.units, request.units - told))
        return news

    def abort(self, request_id: str, reason: str = "aborted") -> None:
        """Withdraw a request; nothing happens where no such request is live."""
        self.loop.abort(request_id, reason)

    def abort_all(self, reason: str = "aborted") -> None:
        """Withdraw whatever has not ended."""
        for request in list(self.streams):
            self.loop.abort(request.request_id, reason)

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self.streams)

    def close(self) -> None:
        """Withdraw whatever has not ended."""
        self.abort_all("closed")

    def _route(self, units: int) -> Route:
        if DECODE in self.table:
            return llm_route(units)
        return tuple(Stage(module) for module in self.table.modules)

    def _forget(self, request: Request) -> Mapping[str, Any]:
        self._told.pop(request.request_id, None)
        return self._payloads.pop(request.request_id)

    def _has_ended(self, request: Request) -> None:
        self._ended.append(request)

    def _has_stepped(self, record: StepRecord) -> None:
        self._record = record
