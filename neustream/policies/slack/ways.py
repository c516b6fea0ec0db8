"""What lies ahead of a request of a pipeline, in seconds: before its loop, in it and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import attrgetter, getitem
from typing import NamedTuple, cast

from neustream.cost import gpu_demand
from neustream.plan import Limits
from neustream.request import Request
from neustream.route import Route
from neustream.streams import Streams
from neustream.tables import LatencyTable

ROUTE, STAGE = attrgetter("route"), attrgetter("stage")
MAX_MEMO = 4096
"""Routes that are remembered, or four times as many as there are requests."""

Visits = tuple[tuple[str, float], ...]
"""Modules in order, with the seconds of the visits to each."""


class Way(NamedTuple):
    """What lies ahead of requests that stand at some stage of their routes, in seconds if they were alone.

    Requests with the same modules ahead share one, whatever their number of visits to the loop.
    """

    loop: str | None
    """The next module that is visited more than once, if any is ahead."""
    before: float
    """The visits before it."""
    after: float
    """The visits after it; all visits where there is no loop ahead."""
    earlier: Visits
    """The modules before the loop."""
    later: Visits
    """The modules after the loop; all modules where there is none."""
    handovers: int
    """How often it goes from one process to another."""


class Place(NamedTuple):
    """A stage of a route: its way, and where the route visits that way's loop."""

    way: Way
    number: int
    """The way's: equal numbers, equal ways."""
    at: int
    """The stage that is the loop (the stage itself where there is none)."""
    visits: int
    """Visits to it in all."""


class Ways:
    """The ways of all routes, each computed once. `seconds` are a step's by module and batch size."""

    def __init__(
        self,
        table: LatencyTable,
        seconds: Mapping[str, Sequence[float]],
        processes: Sequence[Sequence[str]] = (),
    ) -> None:
        self._process = {module: i for i, modules in enumerate(processes) for module in modules}
        self._seconds = seconds
        self._busy = {module: [gpu_demand(table, module, b) for b in range(len(s))] for module, s in seconds.items()}
        self._numbers: dict[Way, int] = {}
        self._next_number = 0
        self._known: dict[int, list[Place]] = {}
        """By the `id` of a route, the place of each of its stages."""
        self._routes: list[Route] = []
        """The known ones, held: none other can have their `id`."""

    def places(self, requests: Sequence[Request]) -> list[Place]:
        """Where each of the requests stands."""
        known = self._known
        found = list(map(known.get, map(id, map(ROUTE, requests))))
        if None in found:
            if len(known) + found.count(None) > max(MAX_MEMO, 4 * len(requests)):
                known.clear()
                self._routes.clear()
                self._numbers.clear()
            return [self._learn(request.route)[request.stage] for request in requests]
        return list(map(getitem, cast("list[list[Place]]", found), map(STAGE, requests)))

    def _learn(self, route: Route) -> list[Place]:
        """What lies ahead at each stage of the route; from now on known."""
        places = self._known.get(id(route))
        if places is None:
            places = self._known[id(route)] = [self._from(route, stage) for stage in range(len(route))]
            self._routes.append(route)
        return places

    def outside(self, way: Way, streams: Streams, limits: Limits) -> tuple[float, float, float]:
        """Seconds outside the loop on this device: `(until all is done, taken from the loop's process, undisturbed)`.

        Where no loop is ahead, that is all that is.
        Each module is as much slower than its table as `drift` says; one that has not been measured, as the loop is.
        A module behind the loop that runs in another process shares the GPU with the loop, by the shares of both,
        and takes from the loop what that costs.
        """
        drift = limits.drift
        usual = drift.get(way.loop, 1.0) if way.loop is not None else 1.0
        before = sum(seconds * drift.get(module, usual) for module, seconds in way.earlier)
        total = taken = undisturbed = before
        for module, seconds in way.later:
            seconds *= drift.get(module, usual)
            undisturbed += seconds
            if way.loop is None or module in streams.modules:
                total += seconds
                taken += seconds
            else:
                contended = seconds * self._contended(way.loop, module, streams, limits)
                total += contended
                taken += contended - seconds
        return total, taken, undisturbed

    def _contended(self, loop: str, module: str, streams: Streams, limits: Limits) -> float:
        """How many times as long a visit of `module` takes beside the loop's own process.

        As the shares of both tell, or as much as the loop's own steps were slowed down where they had company: what
        overlaps slows each other down alike.
        """
        measured = limits.beside.get(loop)
        busy = self._busy[loop]
        num_looping = len(streams[loop]) if loop in streams.modules else 1
        told = max(1.0, busy[min(max(num_looping, 1), len(busy) - 1)] + self._busy[module][1])
        return told if measured is None else max(told, measured / limits.drift.get(loop, 1.0))

    def _from(self, route: Route, stage: int) -> Place:
        ahead = range(stage, len(route))
        loop = next((i for i in ahead if route[i].visits > 1), None)
        visited = [route[i].module for i in ahead if route[i].visits or i == stage]
        processes = [self._process.get(module, module) for module in visited]
        handovers = sum(1 for here, there in pairwise(processes) if here != there)
        if loop is None:
            later = self._visits(route[stage:])
            way = Way(None, 0.0, _total(later), (), later, handovers)
        else:
            earlier, later = self._visits(route[stage:loop]), self._visits(route[loop + 1 :])
            way = Way(route[loop].module, _total(earlier), _total(later), earlier, later, handovers)
        at = stage if loop is None else loop
        number = self._numbers.get(way)
        if number is None:
            number = self._numbers[way] = self._next_number
            self._next_number += 1
        return Place(way, number, at, route[at].visits)

    def _visits(self, route: Route) -> Visits:
        return tuple((stage.module, self._seconds[stage.module][1] * stage.visits) for stage in route)


def _total(visits: Visits) -> float:
    return sum(seconds for _, seconds in visits)
