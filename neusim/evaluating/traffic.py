"""Traffic of cells: windows of traces, those that constants are tuned on apart from those that figures come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neustream.workload.published import PUBLISHED, published_trace
from neustream.workload.traces import TracedRequest, mean_rate, read_trace, scaled

NUM_REQUESTS = 600
"""Requests of a window."""
MAX_TOKENS = 1024
"""The maximum that each request asks for."""
FIRST_TRAINING_SEED = 1000
"""Of made-up traffic: constants are tuned on this seed and the next ones, figures come from those from 0."""
Part = Literal["test", "train"]

TRACES: Mapping[str, str] = {
    "azure-conv": "azure-2023-conv.csv",
    "azure-code": "azure-2023-code.csv",
    "mooncake": "mooncake-conversation.jsonl",
}
"""Files of the traces that are known by name."""
TEST_ROWS: Mapping[str, tuple[int, ...]] = {
    "azure-conv": (2000, 8000, 14000, 500, 3500, 6500, 9500, 12500, 15500, 17000),
    "azure-code": (1000, 4000, 7000, 0, 1700, 3200, 4700, 6200, 7610, 8215),
}
"""First rows of the windows that figures come from, in the order in which they are taken. No two overlap."""
TRAINING_ROWS: Mapping[str, tuple[int, ...]] = {"azure-conv": (5000, 11000), "azure-code": (2500, 5500)}
"""First rows of the windows that constants may be tuned on; no test window has one of their requests."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests for one run: their gaps and lengths. The gaps are stretched to the load."""

    name: str
    """Of the trace."""
    window: str
    """Which part of it."""
    rows: tuple[TracedRequest, ...]

    def at_rate(self, rate: float) -> tuple[TracedRequest, ...]:
        """The same requests, the gaps stretched so that `rate` requests come per second in the mean."""
        own = mean_rate(self.rows)
        if not own > 0:
            raise ValueError(f"traffic {self.name}, window {self.window}: needs at least two requests, at two times")
        return tuple(scaled(self.rows, rate / own))


def window_rows(name: str, total: int, part: Part, num_requests: int = NUM_REQUESTS) -> tuple[int, ...]:
    """First rows of a trace's windows, for a trace of `total` requests.

    Traces whose windows are not listed are cut from the front to the end; every fifth window is for training.
    """
    listed = (TEST_ROWS if part == "test" else TRAINING_ROWS).get(name)
    if listed is not None and num_requests <= NUM_REQUESTS:
        return tuple(row for row in listed if row + num_requests <= total)
    starts = range(0, total - num_requests + 1, num_requests)
    return tuple(row for i, row in enumerate(starts) if (i % 5 == 2) == (part == "train"))


def load_traffic(
    name: str, folder: Path, windows: int = 3, part: Part = "test", num_requests: int = NUM_REQUESTS
) -> list[Traffic]:
    """The first `windows` windows of a trace.

    `name` is a key of `TRACES`, whose file is looked for in `folder`; the path of a trace file; or a key of
    `neustream.workload.published.PUBLISHED`, whose windows are seeds. Raises ValueError, one line, where the trace
    cannot be read, has no times, or has fewer windows.
    """
    if name in PUBLISHED:
        seeds = range(windows) if part == "test" else range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + windows)
        return [Traffic(name, f"seed {seed}", tuple(published_trace(name, num_requests, seed))) for seed in seeds]
    path = folder / TRACES[name] if name in TRACES else Path(name)
    trace = read_trace(path)
    if trace[0].offset is None:
        raise ValueError(f"trace {path}: has no times, which the gaps of a cell are taken from")
    rows = window_rows(name, len(trace), part, num_requests)
    if len(rows) < windows:
        raise ValueError(f"trace {name}: has {len(rows)} {part} windows of {num_requests} requests, not {windows}")
    return [Traffic(name, str(row), _from_zero(trace[row : row + num_requests])) for row in rows[:windows]]


def _from_zero(rows: Sequence[TracedRequest]) -> tuple[TracedRequest, ...]:
    first = rows[0].offset or 0.0
    return tuple(row._replace(offset=(row.offset or 0.0) - first) for row in rows)
