"""clockwork: whole requests, one batch at a time, each started by the latest moment that still meets its deadline."""

from __future__ import annotations

from functools import lru_cache

from neustream.latency import Shape
from neustream.plan import Limits, Rejection, StepPlan
from neustream.request import Request, Route
from neustream.streams import Streams
from neustream.tables import LatencyTable

MAX_BATCH = 9
"""Largest batch that is ever started."""


class Clockwork:
    """The baseline, after Clockwork (Gujarati et al., OSDI'20): predictable because nothing is interrupted.

    Only requests with the same visits to every module share a batch, from the first module to the end of the
    last. A *strategy* is such a group's oldest b requests, b = 1…9; its latest start is the head's deadline
    less `exec(b) = Σ visits × latency(b)`. When the device is free, the strategy with the earliest latest start
    that is not past runs. A request that would end too late even alone is rejected.

    `slo_scale` and `handover` are accepted, as by every loop policy; whole requests need neither.
    """

    def __init__(
        self, table: LatencyTable, *, slo_scale: float = 3.0, handover: float = 0.0, max_batch: int = MAX_BATCH
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        self.table = table
        self.max_batch = max_batch
        self._exec = lru_cache(maxsize=1 << 14)(self._exec_seconds)

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        started = [request for request in streams if request.is_started]
        if started:
            return self._continue(started, limits)
        groups, rejected = self._waiting(now, streams)
        cap = min([self.max_batch, *limits.max_batch.values()])
        best: tuple[float, list[Request]] | None = None
        for route, group in groups.items():
            for size in range(1, min(cap, len(group)) + 1):
                latest = group[0].next_deadline - self._exec(route, size)
                if latest >= now and (best is None or latest < best[0]):
                    best = latest, group[:size]
        if best is None:
            return StepPlan(rejected=rejected)
        return StepPlan(best[1][0].module, tuple(best[1]), rejected)

    def _continue(self, started: list[Request], limits: Limits) -> StepPlan:
        """The next step of the batch under way. Where memory has split it, those furthest behind go first."""
        behind = min((request.stage, -request.left[request.stage]) for request in started)
        batch = [request for request in started if (request.stage, -request.left[request.stage]) == behind]
        module = batch[0].module
        return StepPlan(module, tuple(batch[: limits.max_batch.get(module, len(batch))]))

    def _waiting(self, now: float, streams: Streams) -> tuple[dict[Route, list[Request]], tuple[Rejection, ...]]:
        """The waiting by their route, earliest deadline first, and those that cannot be in time even alone."""
        groups: dict[Route, list[Request]] = {}
        rejected: list[Rejection] = []
        for request in streams:
            alone = self._exec(request.route, 1)
            if request.next_deadline - alone < now:
                due = request.next_deadline - now
                rejected.append(Rejection(request, f"due in {due:.3f} s, alone it takes {alone:.3f} s"))
            else:
                groups.setdefault(request.route, []).append(request)
        for group in groups.values():
            group.sort(key=lambda request: (request.next_deadline, request.arrival))
        return groups, tuple(rejected)

    def _exec_seconds(self, route: Route, batch: int) -> float:
        """Seconds from start to end of `batch` requests of this route."""
        return sum(self.table[stage.module].predict(Shape(batch)) * stage.visits for stage in route)
