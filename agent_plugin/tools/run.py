"""A program that has a seat, and what gives it one."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.result import ToolResult
from agent_plugin.tools.result import ToolCall, ToolOutput
from neustream.records import StepRecord
from neustream.request import Request
from neustream.workflow.stage import TOOL


class Runner(Protocol):
    """What runs programs: `agent_plugin.sandbox.pool.Sandbox`."""

    seats: int
    """Programs at once."""
    limits: Limits

    def submit(
        self, code: str, files: Mapping[str, bytes] | None = None, *, wall: float | None = None
    ) -> Future[ToolResult]:
        """Hand over a program; the future may be resolved from any thread."""
        ...

    def cancel(self, future: Future[ToolResult]) -> None:
        """End that program."""
        ...

    def close(self) -> None:
        """End every program; returns when nothing of them is left."""
        ...


@dataclass(slots=True, eq=False)
class Run:
    """A program that has a seat. Times are on the driver's clock."""

    request: Request
    call: ToolCall
    started: float
    expected: float
    """Seconds that it is expected to take; 0 where nothing is known."""
    deciding: float
    """Seconds that choosing it took."""
    num_waiting: int
    """Programs that waited on when it started."""
    num_running: int
    """Programs that ran when it had started, itself included."""
    rest: float = 0.0
    """Seconds from its start to its deadline."""
    future: Future[ToolResult] = field(default_factory=Future)
    ended: float = 0.0

    def __post_init__(self) -> None:
        self.rest = self.request.next_deadline - self.started

    @property
    def expected_end(self) -> float:
        return self.started + self.expected

    def record(self, output: ToolOutput, rejected: tuple[str, ...]) -> StepRecord:
        """The record of its execution, which has ended; `rejected`: who was given up since the one before."""
        return StepRecord(
            time=self.started - self.deciding,
            kind=TOOL,
            request_ids=(self.request.request_id,),
            seconds=self.ended - self.started + self.deciding,
            decision_seconds=self.deciding,
            schedule_seconds=self.deciding,
            predicted_seconds=self.expected or None,
            num_waiting=self.num_waiting,
            rejected=rejected,
            rest_seconds=(self.rest,),
            extra={
                "label": output.label,
                "program_seconds": output.seconds,
                "num_running": self.num_running,
                "rung": output.rung,
                "program_origin": output.origin,
            },
        )
