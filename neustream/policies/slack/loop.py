"""slack, for pipelines of loop modules: serve only as many requests as all make it.

docs/slack.md explains the rule and shows what it gives.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from neustream.capacity import MAX_BATCH, largest_batch
from neustream.latency import Shape
from neustream.plan import Limits, Rejection, StepPlan
from neustream.policies.base import USUAL, PolicyContext
from neustream.policies.slack.candidates import Candidates
from neustream.policies.slack.fit import FluidFit, Line, Needs, Places, ranks
from neustream.policies.slack.ways import Way, Ways
from neustream.request import Request
from neustream.streams import Streams
from neustream.tables import LatencyTable

SECOND_CHANCES = 2
"""How many of those that did not fit together are tried again one by one."""
RESERVE = 0.02
"""The share of a request's slack that is never planned with: room for those who come next."""


class Forecast(NamedTuple):
    """What a way means at one moment, in seconds."""

    way: Way
    lead: float
    """Hand-overs from one process to another."""
    before: float
    after: float
    """Visits before and after the loop, alone and at the table's speed."""
    step: float | None
    """A step of the loop alone; None where no loop is ahead."""
    leniency: float
    """By how much shorter than the table's a step may be: whoever is late even so is hopeless."""
    slowness: float
    """Measured over predicted seconds of the loop's steps."""
    outside: float
    """All that is outside the loop, on this device as it is."""
    tail: float
    """What of that is taken from the loop, at the table's speed of the loop."""


class SlackLoop:
    """Commits only to what can be kept: see `plan`.

    A request whose loop has begun is a promise, broken only where that keeps more requests. The context's SLO scale
    is not needed: the deadlines say it all.
    """

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL) -> None:
        self.table = table
        self.handover = context.handover
        self.seconds = {module: seconds_by_batch(table, module) for module in table.modules}
        """Per module: seconds of a step by batch size (entry 0 unused), never falling."""
        self._ways = Ways(table, self.seconds, context.processes)
        self._fits: dict[tuple[str, int], FluidFit] = {}

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        """The module nearest to the end of the pipeline first, as its requests are the closest to counting.

        A module with no loop ahead runs its most urgent. A loop runs a set of requests that all make it,
        chosen by `_keepable`; those of the set that still stand before the loop are brought there first.
        """
        rejected, last, loops = self._sort_out(now, streams, limits)
        for module in reversed(streams.modules):
            if module in last:
                return StepPlan(module, self._urgent(module, last[module], limits), tuple(rejected))
            if module in loops:
                target, batch = self._loop_step(module, loops[module], streams, limits)
                return StepPlan(target, batch, tuple(rejected))
        for bound in loops.values():  # the loop runs in another process: pass everything on to it
            module = bound.requests[0].module
            waiting = bound.urgencies(bound.of_module(np.arange(len(bound.requests)), module))
            return StepPlan(module, self._urgent(module, waiting, limits), tuple(rejected))
        return StepPlan(rejected=tuple(rejected))

    def _sort_out(
        self, now: float, streams: Streams, limits: Limits
    ) -> tuple[list[Rejection], dict[str, list[tuple[float, Request]]], dict[str, Candidates]]:
        """The hopeless; by module, those with no loop ahead, with their slack; and by loop, those bound for it."""
        rejected: list[Rejection] = []
        last: dict[str, list[tuple[float, Request]]] = {}
        loops: dict[str, Candidates] = {}
        known, learn = self._ways.known, self._ways.learn
        forecasts: dict[int, Forecast] = {}
        for module in streams.modules:
            current: Way | None = None
            for request in streams[module]:
                entry = known.get(id(request.route))
                way, at, visits = (entry[0] if entry else learn(request.route))[request.stage]
                if way is not current:
                    current = way
                    forecast = forecasts.get(id(way))
                    if forecast is None:
                        forecast = forecasts[id(way)] = self._forecast(way, streams, limits)
                    _, lead, before, after, step, leniency, slowness, outside, tail = forecast
                    if way.loop is not None:
                        bound = loops.setdefault(way.loop, Candidates())
                        bound.starts.setdefault(module, len(bound.requests))
                        requests, all_steps, margins = bound.requests, bound.steps, bound.margins
                        tails, all_visits = bound.tails, bound.visits
                left_seconds = request.next_deadline - now - lead
                if step is None:
                    if left_seconds < after:
                        rejected.append(_hopeless(request, now, after))
                    else:
                        last.setdefault(module, []).append((left_seconds - after, request))
                    continue
                left = request.left[at]
                alone = left * step
                if left_seconds - before - after < alone * leniency:
                    rejected.append(_hopeless(request, now, before + alone * leniency + after))
                    continue
                # Margin and tail are in the table's seconds of the loop: a slower device is like a tighter margin.
                margin = (left_seconds - outside) / slowness
                if margin > alone:
                    margin -= RESERVE * (margin - alone)
                requests.append(request)
                all_steps.append(left)
                margins.append(margin)
                tails.append(tail)
                all_visits.append(visits)
        return rejected, last, {loop: bound for loop, bound in loops.items() if bound.requests}

    def _forecast(self, way: Way, streams: Streams, limits: Limits) -> Forecast:
        """What a way means at this moment, on this device as it is."""
        lead = way.handovers * self.handover
        if way.loop is None:
            return Forecast(way, lead, way.before, way.after, None, 1.0, 1.0, 0.0, 0.0)
        slowness = limits.drift.get(way.loop, 1.0)
        outside, taken = self._ways.outside(way, streams, limits.drift)
        step = self.seconds[way.loop][1]
        leniency = min(slowness, 1.0)  # a device that seems slow may recover: only what the table rules out is hopeless
        return Forecast(way, lead, way.before, way.after, step, leniency, slowness, outside, taken / slowness)

    def _loop_step(
        self, loop: str, bound: Candidates, streams: Streams, limits: Limits
    ) -> tuple[str, tuple[Request, ...]]:
        """The step that serves the loop best: the loop itself, or what brings the chosen to it."""
        fit = self._fit(loop, self._largest(loop, limits))
        at_ease = fit.all_at_ease(bound.steps, bound.margins, bound.tails)
        if at_ease and next(iter(bound.starts)) == loop and fit.is_best(len(bound.requests)):
            return loop, tuple(bound.requests)
        needs = bound.needs()
        everybody = np.arange(len(bound.requests))
        kept = everybody if at_ease or fit.all_fit(needs) else self._keepable(bound, needs, fit)
        for module in streams.modules:
            if module == loop:
                break
            before = bound.of_module(kept, module)
            if len(before):
                return module, self._urgent(module, bound.urgencies(before), limits)
        here = bound.of_module(kept, loop)
        if len(here):
            chosen = fit.batch(needs.of(here))
            return loop, bound.at(here if chosen is None else here[chosen])
        # Nobody's deadline can be promised: serve whoever has most slack, rather than nobody.
        request = bound.requests[int(np.argmax(needs.margins / needs.steps))]
        return request.module, (request,)

    def _keepable(self, bound: Candidates, needs: Needs, fit: FluidFit) -> Places:
        """The requests to serve where not all can be: as many as fit together.

        They are taken by rank. A promise that this would break is broken only if it keeps more requests, or as
        many in a larger batch; else the promises come first. Left out is not rejected: they wait until
        they fit, or until nothing can save them.
        """
        visits = np.array(bound.visits, dtype=np.float64)
        ranked = np.argsort(-ranks(needs, visits), kind="stable")
        is_promised = (needs.steps < visits)[ranked]
        promised = ranked[is_promised]
        # Mostly all promises can be kept, and there is no room for anybody else.
        run, tried = Line(fit, needs.of(ranked)).keep(len(promised), SECOND_CHANCES)
        kept = ranked[run]
        is_kept = np.zeros(len(ranked), dtype=np.bool_)
        is_kept[kept] = True
        if is_kept[promised].all() or is_promised[:tried].all():
            return kept
        order = np.concatenate((promised, ranked[~is_promised]))
        run, _ = Line(fit, needs.of(order)).keep(len(promised), SECOND_CHANCES)
        faithful = order[run]
        worth, faithful_worth = ((len(some), fit.turn_size(needs.of(some))) for some in (kept, faithful))
        return kept if worth > faithful_worth else faithful

    def _urgent(self, module: str, waiting: list[tuple[float, Request]], limits: Limits) -> tuple[Request, ...]:
        """The most urgent of `(slack, request)`: as many as the tightest slack allows in one step."""
        waiting.sort(key=lambda pair: pair[0])
        seconds = self.seconds[module]
        size = min(self._largest(module, limits), len(waiting))
        while size > 1 and seconds[size] - seconds[1] > waiting[0][0]:
            size -= 1
        return tuple(request for _, request in waiting[:size])

    def _largest(self, module: str, limits: Limits) -> int:
        return max(min(len(self.seconds[module]) - 1, limits.max_batch.get(module, MAX_BATCH)), 1)

    def _fit(self, loop: str, largest: int) -> FluidFit:
        fit = self._fits.get((loop, largest))
        if fit is None:
            fit = self._fits[loop, largest] = FluidFit(self.seconds[loop], largest)
        return fit


def _hopeless(request: Request, now: float, alone: float) -> Rejection:
    due = request.next_deadline - now
    return Rejection(request, f"due in {due:.3f} s, alone it takes {alone:.3f} s")


def seconds_by_batch(table: LatencyTable, module: str) -> list[float]:
    """Seconds of a step by batch size, for every size that was measured; noise that makes it fall is levelled."""
    model = table[module]
    seconds = [0.0]
    for batch in range(1, largest_batch(table, module) + 1):
        seconds.append(max(seconds[-1], model.predict(Shape(batch))))
    return seconds
