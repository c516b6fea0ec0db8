"""When everybody will be done who decodes side by side, and whether that is in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neustream.latency import LatencyModel, Shape
from neustream.plan import UNLIMITED, Limits
from neustream.request import Request

SIZES = 2048
"""Batch sizes for which the step's constant part is tabulated; larger ones cost as much as this one."""

Member = tuple[int, int, int, float]
"""A request that decodes: `(steps left, Σ context of its next step, width, deadline of its last unit)`.

Steps left are by the forecast. The deadline is infinite where nothing is promised.
"""
ENOUGH = 8
"""Outputs of a class that have to have finished before their lengths say anything; until then the maximum counts."""
SHARE = 0.5
"""Of the outputs that go on as far as one under way, the share that the length which is expected of it covers."""


class LengthForecast:
    """How many units requests have still to deliver: what was seen of their class, and at most what their route has."""

    __slots__ = ("_likely",)

    def __init__(self, limits: Limits) -> None:
        lengths = limits.lengths
        self._likely = {name: known.likely(SHARE) for name, known in lengths.items() if len(known) >= ENOUGH}

    def __bool__(self) -> bool:
        return bool(self._likely)

    def units_left(self, request: Request) -> int:
        """Units still to come: at least 1."""
        most = sum(request.left)
        likely = self._likely.get(request.slo_class)
        if likely is None:
            return most
        done = request.units + request.in_flight
        return likely.beyond(done, done + most) - done


class DecodeForecast:
    """Decode steps of a changing batch in closed form: `base(batch) + slope × Σ context`, summed over the steps.

    Everybody decodes in every step; each step adds one unit of context per seat, and a request's context
    goes away with it after its last step.
    """

    def __init__(self, model: LatencyModel) -> None:
        self.slope = model.slope
        self._base = [model.predict(Shape(max(batch, 1))) for batch in range(SIZES)]
        self._bases = np.array(self._base)

    def step(self, shape: Shape) -> float:
        """Seconds of one step."""
        return self._base[min(shape.batch, SIZES - 1)] + self.slope * shape.context

    def holds(
        self, start: float, members: Sequence[Member], added: Sequence[Member], limits: Limits, drift: float = 1.0
    ) -> bool:
        """Whether all, decoding from `start` on, end in time and never need more memory than there is.

        Steps take `drift` times as long as the model says.
        """
        rows = sorted([*members, *added])
        left, context, width, last_due = np.array(rows, dtype=float).T
        steps = np.diff(left, prepend=0.0)
        seats = width[::-1].cumsum()[::-1]
        # A request's context at its start, and what it has grown by when a segment of steps begins.
        contexts = context[::-1].cumsum()[::-1] + (left - steps) * seats
        bases = self._bases[np.minimum(seats, SIZES - 1).astype(int)]
        seconds = steps * (bases + self.slope * (contexts + seats * (steps - 1.0) * 0.5))
        if (start + drift * seconds.cumsum() > last_due).any():
            return False
        if limits.total_blocks >= UNLIMITED:
            return True
        # Every sequence wastes half a block on average.
        peak = ((contexts + steps * seats) / limits.block_size + seats * 0.5).max()
        return bool(peak <= limits.total_blocks - limits.spare_blocks)
