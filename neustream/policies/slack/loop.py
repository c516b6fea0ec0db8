"""slack, for pipelines of loop modules: serve only as many requests as all make it.

docs/slack.md explains the rule and shows what it gives.
"""

from __future__ import annotations

import numpy as np

from neustream.capacity import MAX_BATCH, largest_batch
from neustream.latency import Shape
from neustream.plan import Limits, StepPlan
from neustream.policies.base import USUAL, PolicyContext
from neustream.policies.slack.candidates import Candidates
from neustream.policies.slack.fit import FluidFit, Line, Needs, Places, ranks
from neustream.policies.slack.outlook import Outlook
from neustream.request import Request
from neustream.streams import Streams
from neustream.tables import LatencyTable

SECOND_CHANCES = 2
"""How many of those that did not fit together are tried again one by one."""
PAYS = 1.1
"""A single step runs at once if each of its batch costs at most so many times what it costs in the best batch."""


class SlackLoop:
    """Commits only to what can be kept: see `plan`.

    A request whose loop has begun is a promise, broken only where that keeps more requests. The context's SLO scale
    is not needed: the deadlines say it all.
    """

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL) -> None:
        self.table = table
        self.seconds = {module: seconds_by_batch(table, module) for module in table.modules}
        """Per module: seconds of a step by batch size (entry 0 unused), never falling."""
        self._outlook = Outlook(table, self.seconds, context, self._fit)
        self._fits: dict[tuple[str, int], FluidFit] = {}

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        """The module nearest to the end of the pipeline first, as its requests are the closest to counting.

        A module with no loop ahead runs its most urgent; beside a loop it waits until a batch pays, while that costs
        nobody the deadline. A loop runs a set of requests that all make it, chosen by `_keepable`. Once one of those
        that still stand before the loop belongs to its next batch, all of the set are brought there first.
        """
        rejected, last, loops = self._outlook.survey(now, streams, limits)
        loop = next((module for module in reversed(streams.modules) if module in loops), None)
        is_behind = loop is not None
        held = 0.0
        for module in reversed(streams.modules):
            is_behind = is_behind and module != loop
            if module in last.spans:
                waits = is_behind and loop is not None and self._can_wait(module, last, loop, loops[loop], limits)
                if not waits:
                    return StepPlan(module, self._urgent(module, last, limits), rejected)
                held += self._pending(module, last, limits)
            if module in loops:
                target, batch = self._loop_step(
                    module, _later(loops[module], held / limits.drift.get(module, 1.0)), streams, limits
                )
                return StepPlan(target, batch, rejected)
        for bound in loops.values():  # the loop runs in another process: pass everything on to it
            module = next(iter(bound.spans))
            return StepPlan(module, self._urgent(module, bound, limits), rejected)
        return StepPlan(rejected=rejected)

    def _can_wait(self, module: str, last: Candidates, loop: str, bound: Candidates, limits: Limits) -> bool:
        """Whether those behind the loop at `module` gain by waiting for more, and can stand one more step of the loop.

        Then they are asked again. All that waits in front of other modules counts as done before them.
        """
        start, end = last.spans[module]
        fit, loop_fit = self._fit(module, limits), self._fit(loop, limits)
        if fit.rates[fit.best[min(end - start, fit.largest)]] * PAYS >= fit.rates[fit.best[fit.largest]]:
            return False
        step = loop_fit.seconds[min(len(bound.requests), loop_fit.largest)] * limits.drift.get(loop, 1.0)
        others = sum(self._pending(other, last, limits) for other in last.spans if other != module)
        grown = self._pending(module, last, limits) - fit.seconds[1] * limits.drift.get(module, 1.0)
        return float(last.needs.margins[start:end].min()) >= step + others + grown

    def _pending(self, module: str, last: Candidates, limits: Limits) -> float:
        """Seconds of a step of all who wait at `module`, on this device as it is."""
        start, end = last.spans[module]
        fit = self._fit(module, limits)
        return fit.seconds[min(end - start, fit.largest)] * limits.drift.get(module, 1.0)

    def _loop_step(
        self, loop: str, bound: Candidates, streams: Streams, limits: Limits
    ) -> tuple[str, tuple[Request, ...]]:
        """The step that serves the loop best: the loop itself, or what brings the chosen to it."""
        fit, needs = self._fit(loop, limits), bound.needs
        at_ease = fit.all_at_ease(needs)
        if at_ease and next(iter(bound.spans)) == loop and fit.is_best(len(bound.requests)):
            return loop, tuple(bound.requests)
        everybody = np.arange(len(bound.requests))
        kept = everybody if at_ease or fit.all_fit(needs) else self._keepable(bound, fit)
        here = bound.of_module(kept, loop)
        if len(here):
            # Where they take turns, whoever is not in the next batch need not be brought to the loop yet.
            chosen = fit.batch(needs.of(kept))
            batch = kept if chosen is None else kept[chosen]
            if len(here) == len(kept) or len(bound.of_module(batch, loop)) == len(batch):
                return loop, bound.at(batch)
        for module in streams.modules:
            before = bound.of_module(kept, module)
            if len(before):
                return module, self._urgent(module, bound, limits, before)
        # Nobody's deadline can be promised: serve whoever has most slack, rather than nobody.
        request = bound.requests[int(np.argmax(needs.margins / needs.steps))]
        return request.module, (request,)

    def _keepable(self, bound: Candidates, fit: FluidFit) -> Places:
        """The requests to serve where not all can be: as many as fit together.

        They are taken by rank. A promise that this would break is broken only if it keeps more requests, or as
        many in a larger batch; else the promises come first. Left out is not rejected: they wait until
        they fit, or until nothing can save them.
        """
        needs, visits = bound.needs, bound.visits()
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

    def _urgent(
        self, module: str, waiting: Candidates, limits: Limits, places: Places | None = None
    ) -> tuple[Request, ...]:
        """The most urgent at `module`, of those at `places` if given: as many as the tightest allows in one step."""
        if places is None:
            places = waiting.of_module(np.arange(len(waiting.requests)), module)
        margins = waiting.needs.margins[places]
        order = margins.argsort(kind="stable")
        fit, drift = self._fit(module, limits), limits.drift.get(module, 1.0)
        size = min(fit.largest, len(places))
        tightest = float(margins[order[0]])
        while size > 1 and (fit.seconds[size] - fit.seconds[1]) * drift > tightest:
            size -= 1
        return waiting.at(places[order[:size]])

    def _fit(self, module: str, limits: Limits) -> FluidFit:
        seconds = self.seconds[module]
        largest = max(min(len(seconds) - 1, limits.max_batch.get(module, MAX_BATCH)), 1)
        fit = self._fits.get((module, largest))
        if fit is None:
            fit = self._fits[module, largest] = FluidFit(seconds, largest)
        return fit


def _later(bound: Candidates, seconds: float) -> Candidates:
    """The same requests where something else takes so many seconds first, at the table's speed of the loop."""
    if not seconds:
        return bound
    steps, margins, tails = bound.needs
    return Candidates(bound.requests, bound.where, Needs(steps, margins - seconds, tails), bound.spans)


def seconds_by_batch(table: LatencyTable, module: str) -> list[float]:
    """Seconds of a step by batch size, for every size that was measured; noise that makes it fall is levelled."""
    model = table[module]
    seconds = [0.0]
    for batch in range(1, largest_batch(table, module) + 1):
        seconds.append(max(seconds[-1], model.predict(Shape(batch))))
    return seconds
