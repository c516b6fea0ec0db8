"""Demand of image requests: visits to a loop module, and single visits to the modules around it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neusim.bound.demand import Crowd, Demand, Floats, Resources, Seats, levelled, moments
from neustream.capacity import largest_batch
from neustream.cost import gpu_demand
from neustream.latency import Shape
from neustream.request import Request
from neustream.tables import LatencyTable

ROUNDING = 1e-9
Resource = Literal["process", "gpu"]
"""What a step takes seconds of: its process, and the GPU that all processes share."""


class Batches:
    """What a module's steps cost at least, by the seats of those in the batch that count (see `levelled`)."""

    def __init__(self, table: LatencyTable, module: str, largest: int, resources: Resources) -> None:
        sizes = range(1, largest + 1)
        seconds = np.array([table[module].predict(Shape(batch)) for batch in sizes])
        self.steps = levelled(seconds + resources.overhead)
        """Seconds of its process, by batch size."""
        share = np.full(largest, 0.0 if resources.contention == "none" else 1.0)
        if resources.contention == "table":
            share = np.array([gpu_demand(table, module, batch) for batch in sizes])
        self.busy = levelled(seconds * share)
        """Seconds of the GPU, for which the steps of several processes compete."""

    def costs(self, resource: Resource) -> Floats:
        """Seconds of the resource, by batch size."""
        return self.steps if resource == "process" else self.busy

    def fastest(self) -> float:
        """Seconds of the shortest step."""
        return float(self.steps[0])

    def cheapest(self, resource: Resource) -> float:
        """Seconds of the resource per seat, in the step that makes the most of it."""
        costs = self.costs(resource)
        return float((costs / np.arange(1, len(costs) + 1)).min())

    def charges(self, resource: Resource, largest: int) -> tuple[Floats, Floats]:
        """`(price, charge)`: what a visit costs in a batch of at most b, if a second of its time has a price.

        A visit in a batch of b takes step(b) of the request's time and costs(b) / b of the resource;
        `charge[p, b]` is the least of costs(b) / b + price[p] × step(b). So m visits that take D seconds together
        need at least `m × charge − D × price` of the resource, at any price. The prices are those at which the best
        batch changes.
        """
        sizes = np.arange(1, largest + 1)
        steps, shares = self.steps[:largest], self.costs(resource)[:largest] / sizes
        hull: list[tuple[float, float]] = []
        for point in sorted(zip(steps.tolist(), shares.tolist(), strict=True)):
            if hull and point[1] >= hull[-1][1]:
                continue  # neither faster nor cheaper
            while len(hull) > 1 and _is_above(hull[-2], hull[-1], point):
                hull.pop()
            hull.append(point)
        slopes = [(share - cheaper) / (slower - step) for (step, share), (slower, cheaper) in pairwise(hull)]
        price = np.array([0.0, *slopes])
        each = shares + price[:, None] * steps
        return price, np.minimum.accumulate(each, axis=1)


def _is_above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def loop_demands(
    requests: Sequence[Request], table: LatencyTable, resources: Resources, crowd: Crowd
) -> tuple[NDArray[np.bool_], list[Demand]]:
    """Which requests could make it at all, and their demands; `requests` come in order of arrival.

    The demands are on the process of the module that requests visit longest, for the work of all modules that run in
    it, and on the GPU, for the work of all modules, where those of several processes compete.
    """
    way = _Way(requests, table, resources, crowd)
    until = moments(np.concatenate([way.ends[way.eligible], way.deadlines[way.eligible]]))
    if not len(until):
        return way.eligible, []
    demands = [Demand(until, _seconds(way, until, "process", resources.beside(way.main)))]
    if resources.groups is not None and len(resources.groups) > 1 and resources.contention != "none":
        demands.append(Demand(until, _seconds(way, until, "gpu", None)))
    return way.eligible, demands


class _Way:
    """The requests' ways through the modules, seen from the main one."""

    def __init__(self, requests: Sequence[Request], table: LatencyTable, resources: Resources, crowd: Crowd) -> None:
        self.requests = requests
        self.width = np.array([request.width for request in requests])
        modules = {stage.module for request in requests for stage in request.route}
        self.batches: dict[str, Batches] = {}
        for module in modules:
            largest = min(crowd.seats, largest_batch(table, module), resources.max_batch or crowd.seats)
            self.batches[module] = Batches(table, module, max(largest, int(self.width.max())), resources)
        self.main = _main_module(requests, self.batches)
        arrivals = np.array([request.arrival for request in requests])
        self.deadlines = np.array([request.deadlines.at(1) for request in requests])
        spans = [_span(request, self.batches, self.main, resources) for request in requests]
        self.starts = arrivals + np.array([span.before for span in spans])
        self.ends = self.deadlines - np.array([span.after for span in spans])
        self.visits = np.array([span.visits for span in spans])
        alone = self.visits * self.batches[self.main].fastest()
        self.eligible = alone <= (self.ends - self.starts) * (1 + ROUNDING) + ROUNDING

    def around(self, request: Request, resource: Resource, beside: frozenset[str] | None) -> tuple[float, float]:
        """Seconds of a resource that the modules before and after the main one take: those of `beside`, or all."""
        work = [0.0, 0.0]
        for stage, part in zip(request.route, _parts(request, self.main), strict=True):
            if part is not None and (beside is None or stage.module in beside):
                work[part] += stage.visits * request.width * self.batches[stage.module].cheapest(resource)
        return work[0], work[1]


def _seconds(way: _Way, until: Floats, resource: Resource, beside: frozenset[str] | None) -> Floats:
    """`Demand.seconds` on a resource, for the work of the main module and of those in `beside`, or of all."""
    main = way.batches[way.main]
    step = main.fastest()
    seconds = np.zeros((len(way.requests), len(until)))
    starts, ends = way.starts, way.ends
    seats = Seats(starts[way.eligible], ends[way.eligible], way.width[way.eligible])
    price, charge = main.charges(resource, min(max(seats.most, 1), len(main.steps)))
    for i in np.flatnonzero(way.eligible & np.isfinite(ends)):
        taken, lengths = seats.within(starts[i], ends[i])
        # Steps that end after `until` and before the request's own end: at most one more than fit.
        later = np.ceil(np.maximum(ends[i] - until, 0.0) / step - ROUNDING)
        left = np.maximum(way.visits[i] - later, 0.0)
        budget = np.maximum(np.minimum(until, ends[i]) - starts[i], 0.0) + ROUNDING
        work = _work(left, budget, np.minimum(taken, charge.shape[1]), lengths / step, price, charge)
        before, after = way.around(way.requests[i], resource, beside)
        seconds[i] = way.width[i] * np.maximum(work, 0.0)
        seconds[i] += np.where(left > 0, before, 0.0) + np.where(until >= way.deadlines[i], after, 0.0)
    return seconds


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


def _main_module(requests: Sequence[Request], batches: dict[str, Batches]) -> str:
    """The module that takes most of the requests' time."""
    total = dict.fromkeys(batches, 0.0)
    for request in requests:
        for stage in request.route:
            total[stage.module] += stage.visits * batches[stage.module].fastest()
    return max(total, key=lambda module: total[module])


class _Span(NamedTuple):
    """A request's way: its visits to the main module, and the least seconds before and after them."""

    visits: int
    before: float
    after: float


def _parts(request: Request, main: str) -> list[int | None]:
    """Of each stage: whether it stands before the main module (0), after it (1), or is or interrupts it (None)."""
    positions = [i for i, stage in enumerate(request.route) if stage.module == main]
    first, last = (positions[0], positions[-1]) if positions else (0, -1)
    return [0 if i < first else 1 if i > last else None for i in range(len(request.route))]


def _span(request: Request, batches: dict[str, Batches], main: str, resources: Resources) -> _Span:
    visits = sum(stage.visits for stage in request.route if stage.module == main)
    parts = _parts(request, main)
    times = [0.0, 0.0]
    for stage, part in zip(request.route, parts, strict=True):
        if part is not None:
            times[part] += stage.visits * batches[stage.module].fastest()
    visited = [(stage, part) for stage, part in zip(request.route, parts, strict=True) if stage.visits]
    for (stage, part), (following, later) in pairwise(visited):
        if resources.crosses(stage.module, following.module):
            # A hand-over belongs to what stands before the main module, or after it; between its visits, to neither.
            if part == 0:
                times[0] += resources.handover
            elif later == 1:
                times[1] += resources.handover
    return _Span(visits, times[0], times[1])
