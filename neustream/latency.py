"""Latency models: how long one step of a module takes, by the shape of its batch.

Each model is one small function of the batch's shape. Fitting lives in `neusim`, loading in
`neustream.tables`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Shape(NamedTuple):
    """What a step's cost may depend on, summed over the batch."""

    batch: int = 1
    """Requests in the batch (sequences, where a request holds several)."""
    work: int = 0
    """Σ new units to be processed (prompt tokens of a prefill)."""
    work_squared: int = 0
    """Σ of the squares of the new units of each request."""
    context: int = 0
    """Σ units that each request attends to (prompt plus generated tokens)."""


class LatencyModel(Protocol):
    """Predicts the seconds of one step."""

    def predict(self, shape: Shape) -> float:
        """Seconds that a step of this shape takes; positive."""
        ...

    def standalone(self, context: int) -> tuple[float, float]:
        """`(seconds, seconds per further unit of context)` of a lone request's step at this context."""
        ...


def interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Piecewise linear through the points, continued with the slope of the nearest segment outside them."""
    if len(xs) == 1:
        return ys[0]
    right = min(max(bisect_right(xs, x), 1), len(xs) - 1)
    left = right - 1
    slope = (ys[right] - ys[left]) / (xs[right] - xs[left])
    return ys[left] + slope * (x - xs[left])


@dataclass(frozen=True, slots=True)
class BatchLatency:
    """Seconds by batch size: interpolated inside the measured range, extrapolated from the last slope outside.

    An extrapolation never falls below the nearest measured value: noise in the last two points must not
    make a large batch look free.
    """

    batch: tuple[int, ...]
    seconds: tuple[float, ...]

    def predict(self, shape: Shape) -> float:
        return self.at(shape.batch)

    def at(self, batch: int) -> float:
        """Seconds of a step with `batch` requests."""
        sizes = self.batch
        offset = batch - sizes[0]
        if 0 <= offset < len(sizes) and sizes[offset] == batch:  # the usual table: 1, 2, 3, …
            return self.seconds[offset]
        value = interpolate(sizes, self.seconds, batch)
        if batch > sizes[-1]:
            return max(value, self.seconds[-1])
        if batch < sizes[0]:
            return min(max(value, 0.0), self.seconds[0]) or self.seconds[0]
        return value

    @property
    def largest(self) -> int:
        """The largest batch size that was measured."""
        return self.batch[-1]

    def standalone(self, context: int) -> tuple[float, float]:
        return self.at(1), 0.0


@dataclass(frozen=True, slots=True)
class TokensLatency:
    """Prefill: `a + b·Σlen + c·Σlen²` over the batch, or the measured grid where it covers Σlen.

    The quadratic form is that of DistServe's simulator (OSDI'24).
    """

    coef: tuple[float, float, float]
    tokens: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()

    def predict(self, shape: Shape) -> float:
        tokens = self.tokens
        if tokens and tokens[0] <= shape.work <= tokens[-1]:
            return interpolate(tokens, self.seconds, shape.work)
        a, b, c = self.coef
        squares = shape.work_squared
        value = a + b * shape.work + c * squares
        return value if value > 0.0 else a if a > 0.0 else b * shape.work

    def of(self, work: int) -> float:
        """Seconds for one request of `work` units on its own."""
        return self.predict(Shape(1, work, work * work, work))

    def standalone(self, context: int) -> tuple[float, float]:
        return self.of(context), 0.0


@dataclass(frozen=True, slots=True)
class ContextLatency:
    """Decode: `a + b·Σcontext`; with a grid over the batch size, `a` depends on it: `a(batch) + b·Σcontext`."""

    coef: tuple[float, float]
    batch: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()

    def predict(self, shape: Shape) -> float:
        return self.base(shape.batch) + self.coef[1] * shape.context

    def base(self, batch: int) -> float:
        """The part that does not depend on the context, at this batch size, in seconds."""
        if not self.batch:
            return self.coef[0]
        value = interpolate(self.batch, self.seconds, batch)
        return max(value, self.seconds[-1]) if batch > self.batch[-1] else max(value, min(self.seconds))

    def standalone(self, context: int) -> tuple[float, float]:
        slope = self.coef[1]
        return self.base(1) + slope * context, slope
