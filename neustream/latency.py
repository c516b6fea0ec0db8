"""Latency models: how long one step of a module takes, by the shape of its batch.

Each model is one small function of the batch's shape. Fitting lives in `neusim`, loading in
`neustream.tables`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

FITTED_TOKENS = 2048
"""Tokens of the longest prompt that a prefill's coefficients are taken to be fitted on."""


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

    def alone(self, context: int) -> float:
        """Seconds of a lone request's step at this context: of a prefill, the length of its prompt."""
        ...

    @property
    def slope(self) -> float:
        """Seconds that a step takes longer for each further unit of context of its requests."""
        ...

    @property
    def largest(self) -> int | None:
        """The largest batch that may be planned: the largest measured one. None: the form holds for any batch."""
        ...


def interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Piecewise linear through the points, continued with the slope of the nearest segment outside them."""
    if len(xs) == 1:
        return ys[0]
    right = min(max(bisect_right(xs, x), 1), len(xs) - 1)
    left = right - 1
    slope = (ys[right] - ys[left]) / (xs[right] - xs[left])
    return ys[left] + slope * (x - xs[left])


def levelled(seconds: Sequence[float]) -> tuple[float, ...]:
    """The least sequence that never falls and is nowhere below `seconds`: each entry is the largest so far."""
    return tuple(accumulate(seconds, max))


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
            first = self.seconds[0]
            # A smaller batch is never dearer. A line that falls to 0 says nothing about it.
            return value if 0.0 < value < first else first
        return value

    def alone(self, context: int) -> float:
        return self.at(1)

    @property
    def slope(self) -> float:
        return 0.0

    @property
    def largest(self) -> int:
        return self.batch[-1]


@dataclass(frozen=True, slots=True)
class TokensLatency:
    """Prefill: the formula `a + b·Σlen + c·Σlen²` over the batch, or a measured grid over Σlen.

    The quadratic form is that of DistServe's simulator (OSDI'24). Where there is a grid, fewer tokens than its
    first point cost what the first point costs, as in the published artifact. More tokens than its last point
    cost what the formula adds to the last point, and never less than the last point.
    """

    coef: tuple[float, float, float]
    tokens: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    per_prompt: float = 0.0
    """Seconds for each prompt beside its tokens: of its picture in the vision tower, where each prompt has one."""
    long_square: float = 0.0
    """What takes the place of c for prompts beyond `FITTED_TOKENS`, in seconds, where c is negative."""

    def predict(self, shape: Shape) -> float:
        return self.per_prompt * shape.batch + self.of_tokens(shape)

    def of_tokens(self, shape: Shape) -> float:
        """Seconds of the tokens alone."""
        tokens, work = self.tokens, shape.work
        if not tokens:
            return self._positive(work, self.formula(work, shape.work_squared))
        if work <= tokens[0]:
            return self.seconds[0]
        if work <= tokens[-1]:
            return interpolate(tokens, self.seconds, work)
        last = self.seconds[-1]
        return max(last, last + self.formula(work, shape.work_squared) - self.formula(tokens[-1], tokens[-1] ** 2))

    def formula(self, work: float, squares: float) -> float:
        """`a + b·work + c·squares`, in seconds; it may be negative where a fit has a negative coefficient.

        A negative c is noise of the fit. It holds as far as prompts of `FITTED_TOKENS` go: what squares there are
        beyond those cost `long_square`, so that long prompts do not become cheaper by the token.
        """
        a, b, c = self.coef
        if c < 0.0 and squares > FITTED_TOKENS * work:
            within = FITTED_TOKENS * work
            return a + b * work + c * within + self.long_square * (squares - within)
        return a + b * work + c * squares

    def _positive(self, work: int, seconds: float) -> float:
        """These seconds, or where they are not positive a part of the formula that is: a, else b·work."""
        if seconds > 0.0:
            return seconds
        a, b, _ = self.coef
        return a if a > 0.0 else b * work

    def alone(self, context: int) -> float:
        return self.predict(Shape(1, context, context * context, context))

    @property
    def slope(self) -> float:
        return 0.0

    @property
    def largest(self) -> None:
        return None


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

    def alone(self, context: int) -> float:
        return self.base(1) + self.coef[1] * context

    @property
    def slope(self) -> float:
        return self.coef[1]

    @property
    def largest(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class MixedLatency:
    """A step in which pieces of prompts ride with decodes, as it was measured.

    Seconds are `base + per_token·n + square·(Σw² + 2·Σw·p) + per_decode·decodes + per_context·read`. Each of the n
    tokens, decodes included, passes through the layers. A piece of w tokens attends to itself and to the p tokens of
    its prompt before it. `read` is the context of all that decode, and the p of all pieces. Where there is a grid
    over n, it takes the place of `base + per_token·n` in its range. Its seconds are levelled: more tokens never cost
    less.
    """

    base: float
    per_token: float
    square: float = 0.0
    per_decode: float = 0.0
    per_context: float = 0.0
    tokens: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()

    def predict(self, work: int, attended: float, decodes: int, read: float) -> float:
        """Seconds of such a step; `work` are the pieces' tokens, `attended` is `Σw² + 2·Σw·p`."""
        layers = self._layers(work + decodes)
        return layers + self.square * attended + self.per_decode * decodes + self.per_context * read

    def _layers(self, tokens: int) -> float:
        grid = self.tokens
        if not grid:
            return self.base + self.per_token * tokens
        if tokens <= grid[0]:
            return self.seconds[0]
        if tokens <= grid[-1]:
            return interpolate(grid, self.seconds, tokens)
        return self.seconds[-1] + self.per_token * (tokens - grid[-1])
