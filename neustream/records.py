"""Records: one JSON line per request and per step, the same fields from every driver."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from neustream.request import Request


class JsonLines:
    """Appends objects to a file, a line each; what was written survives an interrupted run."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", buffering=1 << 16)

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


def request_record(request: Request, *, origin: float = 0.0) -> dict[str, Any]:
    """What is kept of a request that has ended; times are in seconds since `origin`, None where there is none."""

    def since(moment: float | None) -> float | None:
        return None if moment is None or not math.isfinite(moment) else moment - origin

    return {
        "id": request.request_id,
        "arrival": since(request.arrival),
        "size": request.size,
        "visits": {stage.module: stage.visits for stage in request.route},
        "outcome": request.outcome,
        "reason": request.reason,
        "units": request.units,
        "units_on_time": request.units_on_time,
        "first_unit": since(request.first_unit_at),
        "last_unit": since(request.last_unit_at),
        "end": since(request.ended_at),
        "first_deadline": since(request.deadlines.at(1)),
        "last_deadline": since(request.deadlines.at(request.max_units)),
        "demoted": request.demoted,
    }
