"""A virtual clock, a fake executor that takes the latency model's word, and two small tables: for tests."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from neustream.cost import step_seconds
from neustream.driver import Callbacks
from neustream.history import StepHistory
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.loop import DONE, StepLoop, StepResult
from neustream.plan import Limits, StepPlan
from neustream.policies.base import StepPolicy
from neustream.records import StepRecord
from neustream.request import Request
from neustream.streams import Streams
from neustream.tables import LatencyTable

LLM_TABLE = LatencyTable(
    "opt",
    "d",
    {"prefill": TokensLatency((0.02, 0.001, 0.0)), "decode": ContextLatency((0.03, 1e-5), (1, 8), (0.03, 0.05))},
)
"""A made-up language model: 0.02 s and 1 ms a token for a prompt, 0.03 to 0.05 s for a step of 1 to 8."""
PIPELINE_TABLE = LatencyTable(
    "dit",
    "d",
    {
        "text_encoder": BatchLatency((1, 2), (0.01, 0.015)),
        "denoise": BatchLatency((1, 2, 4, 8), (0.1, 0.12, 0.16, 0.24)),
        "vae": BatchLatency((1, 2), (0.05, 0.1)),
    },
)
"""A made-up pipeline whose steps hardly slow down with the batch: 8 take 2.4 times as long as one."""


class VirtualClock:
    """Time that passes only when it is told to, in seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeExecutor:
    """Runs a step by letting the table's seconds pass on the virtual clock."""

    def __init__(self, table: LatencyTable, clock: VirtualClock, limits: Limits | None = None) -> None:
        self.table = table
        self.clock = clock
        self._limits = limits or Limits()

    def limits(self) -> Limits:
        return self._limits

    def run(self, plan: StepPlan) -> StepResult:
        self.clock.now += step_seconds(self.table, plan)
        return DONE


def drive(loop: StepLoop, clock: VirtualClock, requests: Iterable[Request]) -> list[tuple[float, str, list[str]]]:
    """Feed the requests by their arrival times until all have ended; returns the trace (start, module, ids)."""
    arrivals = [(request.arrival, i, request) for i, request in enumerate(requests)]
    heapq.heapify(arrivals)
    trace: list[tuple[float, str, list[str]]] = []
    while arrivals or len(loop.streams):
        while arrivals and arrivals[0][0] <= clock.now:
            loop.streams.add(heapq.heappop(arrivals)[2])
        start = clock.now
        plan = loop.step()
        loop.streams.check_integrity()
        if plan.module is not None:
            trace.append((round(start, 9), plan.module, [request.request_id for request in plan.members]))
        elif not plan.rejected:
            pending = [moment for moment in (plan.wake, arrivals[0][0] if arrivals else None) if moment is not None]
            assert pending, f"idle for ever with {list(loop.streams)}"
            clock.now = max(clock.now, min(pending))
    return trace


def fake_loop(
    policy: StepPolicy,
    table: LatencyTable,
    on_end: Callable[[Request], None],
    limits: Limits | None = None,
    on_step: Callable[[StepRecord], None] = lambda record: None,
) -> tuple[StepLoop, VirtualClock]:
    """A step loop over a fake executor, and its clock."""
    clock = VirtualClock()
    executor = FakeExecutor(table, clock, limits)
    loop = StepLoop(policy, Streams(table.modules), executor, clock, Callbacks(on_end, on_step), StepHistory(table))
    return loop, clock
