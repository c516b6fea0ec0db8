"""clockwork: whole requests, one batch at a time, each started by the latest moment that still meets its deadline."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import NamedTuple

from neustream.capacity import largest_batch
from neustream.latency import Shape
from neustream.plan import Limits, Rejection, StepPlan
from neustream.policies.base import USUAL, PolicyContext, at_least
from neustream.request import Request
from neustream.route import Route
from neustream.streams import Streams
from neustream.tables import LatencyTable

MAX_BATCH = 9
"""Largest batch that is ever started."""

Group = tuple[Route, int]
"""A route, and the stage from which it remains."""


class Strategy(NamedTuple):
    """A batch of one size that a group could start now."""

    latest: float
    """When it would have to start at the latest, for its first request to be in time."""
    batch: list[Request]


class Clockwork:
    """The baseline, after Clockwork (Gujarati et al., OSDI'20): predictable because nothing is interrupted.

    Only requests with the same visits to every module share a batch, from the first module to the last that
    this device or process runs. Each such group has a queue for every batch size b = 1…9: its requests that are
    in time in a batch of b, earliest deadline first. Where the queue holds b or more there is a *strategy*. Its
    latest start is the first deadline of the queue less `exec(b) = Σ visits × latency(b)` over what remains of the
    route, and a `handover` for each process after this one. When the device is free, the group of the earliest
    latest start is served, in the largest batch that one of its queues fills. A request that would end too late
    even alone is rejected.
    """

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL, *, max_batch: int = MAX_BATCH) -> None:
        self.table = table
        self.handover = context.handover
        self.max_batch = at_least("max_batch", max_batch, 1)
        self._largest = {module: largest_batch(table, module) for module in table.modules}
        self._exec = lru_cache(maxsize=1 << 14)(self._exec_seconds)

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        under_way, waiting = _split(streams)
        if under_way:
            return self._continue(under_way, limits)
        groups, rejected = self._triage(now, waiting)
        measured = (self._largest[module] for module in streams.modules)
        cap = min([self.max_batch, *limits.max_batch.values(), *measured])
        options = [self._strategies(now, route, stage, group, cap) for (route, stage), group in groups.items()]
        if not options:
            return StepPlan(rejected=rejected)
        most_urgent = min(options, key=lambda strategies: min(strategy.latest for strategy in strategies))
        batch = most_urgent[-1].batch
        return StepPlan(batch[0].module, tuple(batch), rejected)

    def _strategies(self, now: float, route: Route, stage: int, group: list[Request], cap: int) -> list[Strategy]:
        """The group's strategies, by batch size; one of its requests alone can always be in time."""
        deadlines = [request.next_deadline for request in group]
        strategies = []
        for size in range(1, min(cap, len(group)) + 1):
            seconds = self._exec(route, stage, size)
            first = bisect_left(deadlines, now, key=lambda due: due - seconds)
            if len(group) - first >= size:
                strategies.append(Strategy(deadlines[first] - seconds, group[first : first + size]))
        return strategies

    def _continue(self, under_way: list[Request], limits: Limits) -> StepPlan:
        """The next step of the batch under way. Where memory has split it, those furthest behind go first."""
        places = [(request.stage, -request.left[request.stage]) for request in under_way]
        behind = min(places)
        batch = [request for request, place in zip(under_way, places, strict=True) if place == behind]
        module = batch[0].module
        return StepPlan(module, tuple(batch[: limits.max_batch.get(module, len(batch))]))

    def _triage(self, now: float, waiting: list[Request]) -> tuple[dict[Group, list[Request]], tuple[Rejection, ...]]:
        """The waiting by what remains of their route, earliest deadline first; and those who would be late alone."""
        groups: dict[Group, list[Request]] = {}
        rejected: list[Rejection] = []
        for request in waiting:
            alone = self._exec(request.route, request.stage, 1)
            if request.next_deadline - alone < now:
                due = request.next_deadline - now
                rejected.append(Rejection(request, f"due in {due:.3f} s, alone it takes {alone:.3f} s"))
            else:
                groups.setdefault((request.route, request.stage), []).append(request)
        for group in groups.values():
            group.sort(key=lambda request: (request.next_deadline, request.arrival))
        return groups, tuple(rejected)

    def _exec_seconds(self, route: Route, stage: int, batch: int) -> float:
        """Seconds from the start of this stage to the end of the route for a batch of this size."""
        rest = [left for left in route[stage:] if left.visits]
        steps = sum(self.table[left.module].predict(Shape(batch)) * left.visits for left in rest)
        return steps + self.handover * (len(rest) - 1)


def _split(streams: Streams) -> tuple[list[Request], list[Request]]:
    """`(under way, waiting)`: whether one of these streams' modules has run the request already."""
    modules = streams.modules
    under_way: list[Request] = []
    waiting: list[Request] = []
    for request in streams:
        stage = request.stage
        is_under_way = request.left[stage] != request.route[stage].visits or (
            stage > 0 and any(earlier.visits and earlier.module in modules for earlier in request.route[:stage])
        )
        (under_way if is_under_way else waiting).append(request)
    return under_way, waiting
