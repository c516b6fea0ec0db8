"""Records: one JSON line per request and per step, the same fields from every driver."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from neustream.request import Request


class JsonLines:
    """Appends objects to a file, a line each. A written line is the system's: it survives a killed process.

    A line costs a system call, some 2 µs on a local disk.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", buffering=1, encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, allow_nan=False) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What is kept of a request that has ended. Times are seconds since the run's origin, None where there is none."""

    id: str
    arrival: float | None
    size: int
    visits: Mapping[str, int]
    """Visits to each module that it asked for at most."""
    outcome: str
    reason: str | None
    units: int
    units_on_time: int
    first_unit: float | None
    last_unit: float | None
    end: float | None
    first_deadline: float | None
    last_deadline: float | None
    demoted: bool = False
    slo_class: str = ""

    @classmethod
    def of(cls, request: Request, *, origin: float = 0.0) -> RequestRecord:
        """The record of a request that has ended. Raises ValueError for one that has not."""
        if request.outcome is None:
            raise ValueError(f"{request!r} has not ended")

        def since(moment: float | None) -> float | None:
            return None if moment is None or not math.isfinite(moment) else moment - origin

        return cls(
            id=request.request_id,
            arrival=since(request.arrival),
            size=request.size,
            visits={stage.module: stage.visits for stage in request.route},
            outcome=str(request.outcome),
            reason=request.reason,
            units=request.units,
            units_on_time=request.units_on_time,
            first_unit=since(request.first_unit_at),
            last_unit=since(request.last_unit_at),
            end=since(request.ended_at),
            first_deadline=since(request.deadlines.at(1)),
            last_deadline=since(request.deadlines.at(request.max_units)),
            demoted=request.demoted,
            slo_class=request.slo_class,
        )

    def to_json(self) -> dict[str, Any]:
        """Its line in `requests.jsonl`."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What is kept of a step that has ended, the same fields from every driver. Durations are in seconds."""

    time: float
    """When its planning began, on the driver's clock."""
    kind: str
    """The module that ran, or `mixed` where pieces of a first stage rode along."""
    request_ids: tuple[str, ...]
    """The requests that it worked on: the batch, then those of the pieces."""
    seconds: float
    """From `time` until it had ended."""
    decision_seconds: float = 0.0
    """What the policy and its adapter took of that."""
    schedule_seconds: float = 0.0
    """What scheduling took of that in all, an engine's own part included."""
    predicted_seconds: float | None = None
    """What the latency table says that the step takes without any planning; None where it does not know."""
    num_waiting: int = 0
    """Requests that waited in front of its modules and were left out."""
    rejected: tuple[str, ...] = ()
    """Requests that were given up when it was planned."""
    rest_seconds: tuple[float, ...] = ()
    """Seconds from `time` to the next deadline of each member; empty where the driver does not say."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What only this kind of driver knows; its keys are columns of `steps.jsonl` as they are."""

    @property
    def batch_size(self) -> int:
        """Requests that it worked on."""
        return len(self.request_ids)

    def to_json(self, *, origin: float = 0.0) -> dict[str, Any]:
        """Its line in `steps.jsonl`; `time` in seconds since `origin`."""
        return {
            "time": self.time - origin,
            "module": self.kind,
            "batch_size": self.batch_size,
            "seconds": self.seconds,
            "predicted_seconds": self.predicted_seconds,
            "schedule_seconds": self.schedule_seconds,
            "decision_seconds": self.decision_seconds,
            "num_waiting": self.num_waiting,
            "request_ids": list(self.request_ids),
            "rejected": list(self.rejected),
            **self.extra,
        }
