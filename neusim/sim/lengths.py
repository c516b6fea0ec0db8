"""Which requests a simulated run serves, where their outputs do not all have the length that they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from neustream.workload import MEAN_OUTPUT, output_lengths, prompt_lengths
from neustream.workload.published import PUBLISHED, published_trace
from neustream.workload.traces import TracedRequest, read_trace, window

LENGTHS: Mapping[str, str] = {
    "fixed": "each output is as long as its request asks for",
    "trace": "outputs end where the trace says",
    "lognormal": "outputs are log-normal",
}
"""Kinds of output lengths. Of all but `fixed`, no policy knows where an output ends."""


class Asked(NamedTuple):
    """What was asked for of a run's requests."""

    lengths: str | None
    """A key of `LENGTHS`; None: those of the trace where there is one, else fixed."""
    trace: Path | None
    """A trace's file, or a name of `PUBLISHED`."""
    trace_window: tuple[float, float] | None
    num_requests: int | None
    max_tokens: int
    mean_output: float | None
    seed: int

    @property
    def kind(self) -> str:
        """The kind of output lengths."""
        return self.lengths or ("fixed" if self.trace is None else "trace")


def traced_requests(asked: Asked, default_requests: int) -> tuple[TracedRequest, ...]:
    """The requests, with times where the trace has them. Empty where they are synthetic and all outputs are fixed.

    Raises ValueError, one line, for what does not go together, or a trace that cannot be read.
    """
    kind = asked.kind
    if asked.mean_output is not None and kind != "lognormal":
        raise ValueError("--mean-output needs --lengths lognormal")
    if asked.trace is None:
        if kind == "trace":
            raise ValueError(f"--lengths trace needs --trace: a file, or {', '.join(PUBLISHED)}")
        if kind == "fixed":
            return ()
        prompts = prompt_lengths(asked.num_requests or default_requests, asked.seed).tolist()
        rows = [TracedRequest(None, prompt, 1) for prompt in prompts]
    else:
        rows = _of_trace(asked, asked.trace, default_requests)
    if kind == "fixed":
        return tuple(row._replace(output=asked.max_tokens) for row in rows)
    if kind == "lognormal":
        outputs = output_lengths(len(rows), asked.seed, mean=asked.mean_output or MEAN_OUTPUT).tolist()
        return tuple(row._replace(output=output) for row, output in zip(rows, outputs, strict=True))
    return tuple(rows)


def _of_trace(asked: Asked, trace: Path, default_requests: int) -> list[TracedRequest]:
    if str(trace) in PUBLISHED:
        rows = published_trace(str(trace), asked.num_requests or default_requests, asked.seed)
    else:
        rows = read_trace(trace)
    if asked.trace_window is not None:
        if rows[0].offset is None:
            raise ValueError(f"--trace-window does not apply: {trace} has no times; give --rate")
        rows = window(rows, *asked.trace_window)
    return rows[: asked.num_requests] if asked.num_requests is not None else rows
