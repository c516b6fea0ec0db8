"""Demand of image requests: visits to a loop module, and single visits to the modules around it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neusim.bound.demand import Demand, Floats, Seats, moments
from neustream.latency import Shape
from neustream.request import Request
from neustream.tables import LatencyTable

ROUNDING = 1e-9


class Batches:
    """What a module's steps cost at least, by the seats of those in the batch that count.

    A table may say that a larger batch is faster. Then a schedule could fill up a batch with requests that
    are late anyway; so a batch of b costs no more here than any larger one.
    """

    def __init__(self, table: LatencyTable, module: str, largest: int) -> None:
        predict = table[module].predict
        steps = np.array([predict(Shape(batch)) for batch in range(1, largest + 1)])
        self.steps = np.minimum.accumulate(steps[::-1])[::-1]

    def fastest(self) -> float:
        """Seconds of the shortest step."""
        return float(self.steps[0])

    def cheapest(self) -> float:
        """Seconds per seat of the step that makes the most of the device."""
        return float((self.steps / np.arange(1, len(self.steps) + 1)).min())

    def charges(self, largest: int) -> tuple[Floats, Floats]:
        """`(price, cost)`: what a visit costs in a batch of at most b, if a second of its time has a price.

        A visit in a batch of b takes step(b) of the request's time and step(b) / b of the device's; `cost[p, b]`
        is the least of step(b) / b + price[p] × step(b). So m visits that take D seconds together need at
        least `m × cost − D × price` of the device, at any price. The prices are those at which the best batch changes.
        """
        sizes = np.arange(1, largest + 1)
        steps = self.steps[:largest]
        hull: list[tuple[float, float]] = []
        for point in sorted(zip(steps.tolist(), (steps / sizes).tolist(), strict=True)):
            if hull and point[1] >= hull[-1][1]:
                continue  # neither faster nor cheaper
            while len(hull) > 1 and _is_above(hull[-2], hull[-1], point):
                hull.pop()
            hull.append(point)
        slopes = [(share - cheaper) / (slower - step) for (step, share), (slower, cheaper) in pairwise(hull)]
        price = np.array([0.0, *slopes])
        each = steps / sizes + price[:, None] * steps
        return price, np.minimum.accumulate(each, axis=1)


def _is_above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def loop_demands(
    requests: Sequence[Request], table: LatencyTable, is_shared: bool, max_batch: int | None
) -> tuple[NDArray[np.bool_], list[Demand]]:
    """Which requests could make it at all, and the demand of all; `requests` come in order of arrival.

    With `is_shared`, modules take turns on the device, and the work of all counts. Otherwise each runs on its
    own, and only the work of the module that requests visit longest counts.
    """
    arrivals = np.array([request.arrival for request in requests])
    deadlines = np.array([request.deadlines.at(1) for request in requests])
    width = np.array([request.width for request in requests])
    most = int(width.sum()) if max_batch is None else max(max_batch, int(width.max()))
    modules = {stage.module for request in requests for stage in request.route}
    batches = {module: Batches(table, module, most) for module in modules}
    main = _main_module(requests, batches)
    step = batches[main].fastest()
    spans = [_span(request, batches, main) for request in requests]
    starts = arrivals + np.array([span.before for span in spans])
    ends = deadlines - np.array([span.after for span in spans])
    visits = np.array([span.visits for span in spans])
    eligible = visits * step <= (ends - starts) * (1 + ROUNDING) + ROUNDING
    until = moments(np.concatenate([ends[eligible], deadlines[eligible]]))
    seconds = np.zeros((len(requests), len(until)))
    seats = Seats(starts[eligible], ends[eligible], width[eligible])
    price, cost = batches[main].charges(min(max(seats.most, 1), most))
    for i in np.flatnonzero(eligible & np.isfinite(ends)):
        taken, lengths = seats.within(starts[i], ends[i])
        # Steps that end after `until` and before the request's own end: at most one more than fit.
        later = np.ceil(np.maximum(ends[i] - until, 0.0) / step - ROUNDING)
        left = np.maximum(visits[i] - later, 0.0)
        budget = np.maximum(np.minimum(until, ends[i]) - starts[i], 0.0) + ROUNDING
        work = _work(left, budget, np.minimum(taken, cost.shape[1]), lengths / step, price, cost)
        seconds[i] = width[i] * np.maximum(work, 0.0)
        if is_shared:
            seconds[i] += np.where(left > 0, spans[i].before_work, 0.0)
            seconds[i] += np.where(until >= deadlines[i], spans[i].after_work, 0.0)
    return eligible, [Demand(until, seconds)] if len(until) else []


def _work(visits: Floats, budget: Floats, seats: NDArray[np.int_], room: Floats, price: Floats, cost: Floats) -> Floats:
    """Device seconds of `visits` within `budget` seconds, shapes (m,): the best of the bounds at each price.

    `seats` and `room` say, for each piece of the request's window, how large a batch can be in it and how many
    visits fit into it. The fullest pieces are taken first, since visits in them are cheapest at every price.
    """
    order = np.argsort(-seats)
    filled = np.concatenate([[0.0], np.cumsum(room[order])])
    paid = np.cumsum(cost[:, seats[order] - 1] * room[order], axis=1)
    total = np.array([np.interp(visits, filled, np.concatenate([[0.0], row])) for row in paid])
    bounds: Floats = (total - price[:, None] * budget).max(axis=0)
    return bounds


class _Span(NamedTuple):
    """A request's way, seen from the main module: least seconds before and after it, and the device's work there."""

    visits: int
    before: float
    before_work: float
    after: float
    after_work: float


def _main_module(requests: Sequence[Request], batches: dict[str, Batches]) -> str:
    """The module that takes most of the requests' time."""
    total = dict.fromkeys(batches, 0.0)
    for request in requests:
        for stage in request.route:
            total[stage.module] += stage.visits * batches[stage.module].fastest()
    return max(total, key=lambda module: total[module])


def _span(request: Request, batches: dict[str, Batches], main: str) -> _Span:
    before = before_work = after = after_work = 0.0
    visits = 0
    positions = [i for i, stage in enumerate(request.route) if stage.module == main]
    for i, stage in enumerate(request.route):
        time = stage.visits * batches[stage.module].fastest()
        work = stage.visits * request.width * batches[stage.module].cheapest()
        if stage.module == main:
            visits += stage.visits
        elif positions and i < positions[0]:
            before, before_work = before + time, before_work + work
        elif not positions or i > positions[-1]:
            after, after_work = after + time, after_work + work
    return _Span(visits, before, before_work, after, after_work)
