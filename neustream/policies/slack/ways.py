"""What lies ahead of a request of a pipeline, in seconds: before its loop, in it and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from neustream.cost import gpu_demand
from neustream.route import Route
from neustream.streams import Streams
from neustream.tables import LatencyTable

MAX_MEMO = 4096

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
        self._shared: dict[Way, Way] = {}
        self.known: dict[int, tuple[list[Place], Route]] = {}
        """By the `id` of a route, the place of each of its stages. The route is held: none other can have its `id`."""

    def learn(self, route: Route) -> list[Place]:
        """What lies ahead at each stage of the route; from now on in `known`."""
        if len(self.known) >= MAX_MEMO:
            self.known.clear()
            self._shared.clear()
        places = [self._from(route, stage) for stage in range(len(route))]
        self.known[id(route)] = places, route
        return places

    def outside(self, way: Way, streams: Streams, drift: Mapping[str, float]) -> tuple[float, float]:
        """Seconds outside the loop on this device as it is: `(until all is done, taken from the loop's process)`.

        Each module is as much slower than its table as `drift` says; one that has not been measured, as the loop is.
        A module behind the loop that runs in another process shares the GPU with the loop, by the shares of both,
        and takes from the loop what that costs.
        """
        assert way.loop is not None
        usual = drift.get(way.loop, 1.0)
        before = sum(seconds * drift.get(module, usual) for module, seconds in way.earlier)
        total = taken = before
        for module, seconds in way.later:
            seconds *= drift.get(module, usual)
            if module in streams.modules:
                total += seconds
                taken += seconds
            else:
                contended = seconds * self._contended(way.loop, module, streams)
                total += contended
                taken += contended - seconds
        return total, taken

    def _contended(self, loop: str, module: str, streams: Streams) -> float:
        """How many times as long a visit of `module` takes beside the loop's own process."""
        busy = self._busy[loop]
        num_looping = len(streams[loop]) if loop in streams.modules else 1
        return max(1.0, busy[min(max(num_looping, 1), len(busy) - 1)] + self._busy[module][1])

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
        return Place(self._shared.setdefault(way, way), at, route[at].visits)

    def _visits(self, route: Route) -> Visits:
        return tuple((stage.module, self._seconds[stage.module][1] * stage.visits) for stage in route)


def _total(visits: Visits) -> float:
    return sum(seconds for _, seconds in visits)
