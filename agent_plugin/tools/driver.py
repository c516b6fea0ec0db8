"""The code executor as a driver: programs in, the sandbox's seats, their results out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.pool import Sandbox
from agent_plugin.tools.result import ToolCall, ToolOutput, check_call, make_output
from agent_plugin.tools.run import Run, Runner
from agent_plugin.tools.seats import RunSeconds, choose
from neustream.driver import Ask, Callbacks, Observer
from neustream.latency import BatchLatency
from neustream.loop import Clock
from neustream.records import StepRecord
from neustream.request import OnMiss, Outcome, Request
from neustream.route import Stage
from neustream.slo import NO_DEADLINES, parse_slo
from neustream.streams import Streams
from neustream.tables import LatencyTable
from neustream.workflow.stage import TOOL

PATIENCE = 0.01
"""Seconds for which a step waits for a program to end, and so the most that a new call waits for the step."""
TOO_LATE = "deadline cannot hold"


class ToolDriver:
    """Runs programs in a sandbox, `seats` at once. Implements `neustream.driver.Driver` and `HasResults`.

    An ask's payload is a `ToolCall`, or a program's text. Programs start by deadline, the earliest first. One that
    waits and is not expected to end by its deadline is given up, or demoted if it chose so; one that runs is ended at
    its limit of seconds, not at its deadline. How a program did is in its result: a request whose program failed has
    been served, and is met or late.

    `table`: the executor's latency table, for expectations before programs have run and for SLOs given as scales.
    `slo`, `on_miss`: of asks that name none; without both there is no deadline. `patience`: see `PATIENCE`; with 0 no
    step waits. `step` raises `SandboxRefused` once the sandbox cannot run programs any more. The sandbox is closed
    with the driver. Raises ValueError where the table has no module `execute` by batch size.
    """

    def __init__(
        self,
        sandbox: Runner,
        *,
        seats: int | None = None,
        table: LatencyTable | None = None,
        slo: Mapping[str, Any] | None = None,
        on_miss: OnMiss = "reject",
        clock: Clock = time.monotonic,
        observer: Observer | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.seats = sandbox.seats if seats is None else seats
        if not 1 <= self.seats <= sandbox.seats:
            raise ValueError(f"seats is {self.seats}, expected 1 to {sandbox.seats}, the sandbox's")
        seconds = table[TOOL] if table is not None else None
        if not (seconds is None or isinstance(seconds, BatchLatency)):
            raise ValueError(f"module {TOOL!r} is a {type(seconds).__name__}, expected seconds by batch size")
        self.sandbox, self.table, self.clock, self.patience = sandbox, table, clock, patience
        self.seconds = RunSeconds(seconds)
        self.wake: float | None = None
        """After a step with nothing to tell: when to try again at the latest, or None: when a request arrives."""
        self._slo = None if slo is None else parse_slo(slo)
        self._on_miss = on_miss
        self._observer = observer if observer is not None else Callbacks()
        self._streams = Streams((TOOL,))
        self._calls: dict[str, ToolCall] = {}
        self._running: dict[str, Run] = {}
        self._withdrawn: list[Run] = []
        """Programs whose requests have ended while the sandbox has still to end them: they keep their seats."""
        self._over: deque[Run] = deque()
        """Programs that have ended and are not accounted for."""
        self._something_ended = threading.Condition()
        self._rejected: list[str] = []
        self._ended: dict[str, tuple[Request, ToolOutput | None]] = {}
        self._taken: dict[str, ToolOutput | None] = {}
        self._is_closed = False

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._streams) + len(self._running)

    def submit(self, ask: Ask) -> None:
        """Take a program. Raises ValueError, one line, for bad input or an id in use, RuntimeError after `close`."""
        if self._is_closed:
            raise RuntimeError("the executor is closed")
        name = ask.request_id
        if name in self._calls or name in self._ended:
            raise ValueError(f"request id {name!r} is in use")
        call = check_call(name, ask.payload, self.sandbox.limits)
        slo = self._slo if ask.slo is None else parse_slo(ask.slo)
        route = (Stage(TOOL),)
        deadlines = NO_DEADLINES if slo is None else slo.bind(ask.arrival, route, 1, self.table)
        self._streams.add(Request(name, ask.arrival, deadlines, route, on_miss=ask.on_miss or self._on_miss))
        self._calls[name] = call

    def step(self) -> StepRecord | None:
        """Give free seats to programs; the record of one that has ended. Waits at most `patience` for one to end."""
        record = self._account()
        self._fill_seats()
        if record is None and (self._running or self._withdrawn) and self.patience > 0:
            with self._something_ended:
                self._something_ended.wait_for(lambda: self._over, self.patience)
            record = self._account()
            if record is not None:
                self._fill_seats()
        is_idle = not (self._running or self._withdrawn or len(self._streams))
        self.wake = None if is_idle else self.clock() + (0.0 if self.patience > 0 else PATIENCE)
        if record is not None:
            self._observer.on_step(record)
        return record

    def take_ended(self) -> list[Request]:
        """The requests that have ended since the last call; `take_result` has their results until the next call."""
        ended, self._ended = self._ended, {}
        self._taken = {name: output for name, (_, output) in ended.items()}
        return [request for request, _ in ended.values()]

    def take_result(self, request_id: str) -> ToolOutput | None:
        """What a program of the last `take_ended` came to, None where it was not run to its end. Raises KeyError."""
        return self._taken[request_id]

    def abort(self, request_id: str, reason: str = "aborted") -> None:
        """Withdraw a request; its program is ended if it runs. Nothing happens where no such request is live."""
        request = self._streams.get(request_id)
        if request is not None:
            self._streams.remove(request)
            self._end(request, self.clock(), None, Outcome.ABORTED, reason)
        elif request_id in self._running:
            run = self._running.pop(request_id)
            self._withdrawn.append(run)
            self.sandbox.cancel(run.future)
            self._end(run.request, self.clock(), None, Outcome.ABORTED, reason)

    def abort_all(self, reason: str = "aborted") -> None:
        """Withdraw whatever has not ended."""
        for name in list(self._calls):
            self.abort(name, reason)

    def close(self) -> None:
        """Withdraw whatever has not ended, and close the sandbox; returns when nothing of it is left."""
        if not self._is_closed:
            self.abort_all("the executor was closed")
            self._is_closed = True
            self.sandbox.close()

    # --- seats ------------------------------------------------------------------------------------------------------

    def _fill_seats(self) -> None:
        """Give up what is hopeless, and start programs on the seats that are free."""
        if not len(self._streams):
            return
        began = now = self.clock()
        busy = [*self._running.values(), *self._withdrawn]
        seconds = self.seconds.expect(min(len(busy) + 1, self.seats))
        ends = [run.expected_end for run in busy]
        start, hopeless = choose(now, self._streams[TOOL], ends, self.seats, seconds)
        for request in hopeless:
            if request.on_miss == "demote":
                self._streams.demote(request)
                continue
            self._streams.remove(request)
            self._rejected.append(request.request_id)
            self._end(request, now, None, Outcome.REJECTED, TOO_LATE)
        for request in start:
            now = self.clock()
            self._start(request, now, seconds, now - began)
            began = self.clock()

    def _start(self, request: Request, now: float, expected: float, deciding: float) -> None:
        self._streams.remove(request)
        call = self._calls[request.request_id]
        num_running = len(self._running) + len(self._withdrawn) + 1
        run = Run(request, call, now, expected, deciding, len(self._streams), num_running)
        self._running[request.request_id] = run
        run.future = self.sandbox.submit(call.code, call.files, wall=call.wall)
        run.future.add_done_callback(lambda _: self._note_end(run))

    def _note_end(self, run: Run) -> None:
        """In the sandbox's thread."""
        with self._something_ended:
            run.ended = self.clock()
            self._over.append(run)
            self._something_ended.notify()

    def _account(self) -> StepRecord | None:
        """Account for one program that has ended, if any. Raises SandboxRefused where the sandbox has."""
        with self._something_ended:
            if not self._over:
                return None
            run = self._over.popleft()
        error = run.future.exception()
        if error is not None:
            self._over.appendleft(run)  # so does every further step
            raise error
        output = make_output(run.future.result(), run.call.origin)
        if run in self._withdrawn:
            self._withdrawn.remove(run)
        else:
            del self._running[run.request.request_id]
            self.seconds.add(run.ended - run.started)
            run.request.advance(run.ended)
            self._end(run.request, run.ended, output)
        rejected, self._rejected = tuple(self._rejected), []
        return run.record(output, rejected)

    def _end(
        self,
        request: Request,
        at: float,
        output: ToolOutput | None,
        outcome: Outcome | None = None,
        reason: str | None = None,
    ) -> None:
        request.end(at, outcome, reason)
        del self._calls[request.request_id]
        self._ended[request.request_id] = (request, output)
        self._observer.on_end(request)


def make_tool_driver(
    rung: str = "auto", *, seats: int | None = None, limits: Limits | None = None, **options: Any
) -> ToolDriver:
    """A driver on a sandbox of its own: by default the strongest wall that holds here, a seat per processor.

    `options` are those of `ToolDriver`. Raises as `Sandbox` and `ToolDriver` do.
    """
    sandbox = Sandbox(rung, seats=seats, limits=limits)
    try:
        return ToolDriver(sandbox, **options)
    except BaseException:
        sandbox.close()
        raise
