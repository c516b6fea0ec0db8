"""slack, for pipelines of loop modules: serve only as many requests as all make it.

docs/slack.md explains the rule and shows what it gives.
"""

from __future__ import annotations

import numpy as np

from neustream.capacity import MAX_BATCH, largest_batch
from neustream.latency import Shape
from neustream.plan import Limits, Rejection, StepPlan
from neustream.policies.base import USUAL, PolicyContext
from neustream.policies.slack.fit import Floats, FluidFit, Job, Places, ranks, rows_of
from neustream.policies.slack.ways import Ways
from neustream.request import Request
from neustream.streams import Streams
from neustream.tables import LatencyTable

SECOND_CHANCES = 2
"""How many of those that did not fit together are tried again one by one."""
RESERVE = 0.02
"""The share of a request's slack that is never planned with: room for those who come next."""


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
        for jobs in loops.values():  # the loop runs in another process: pass everything on to it
            module = jobs[0].request.module
            urgent = [(job.margin, job.request) for job in jobs if job.request.module == module]
            return StepPlan(module, self._urgent(module, urgent, limits), tuple(rejected))
        return StepPlan(rejected=tuple(rejected))

    def _sort_out(
        self, now: float, streams: Streams, limits: Limits
    ) -> tuple[list[Rejection], dict[str, list[tuple[float, Request]]], dict[str, list[Job]]]:
        """The hopeless; by module, those with no loop ahead, with their slack; and by loop, those bound for it."""
        rejected: list[Rejection] = []
        last: dict[str, list[tuple[float, Request]]] = {}
        loops: dict[str, list[Job]] = {}
        handover, ways, drift = self.handover, self._ways, limits.drift
        pace = {loop: (seconds[1], drift.get(loop, 1.0)) for loop, seconds in self.seconds.items()}
        known_ways = ways.known
        outside: dict[int, tuple[float, float]] = {}
        for module in streams.modules:
            for request in streams[module]:
                route = request.route
                known = known_ways.get(id(route))
                if known is None or known[0] is not route:
                    known = ways.learn(route)
                way = known[1][request.stage]
                loop, at, before, after, _, _, rest, handovers = way
                left_seconds = request.next_deadline - now - handovers * handover
                if loop is None:
                    if left_seconds < after:
                        rejected.append(self._hopeless(request, now, after))
                    else:
                        last.setdefault(module, []).append((left_seconds - after, request))
                    continue
                left = request.left[at]
                step, slowness = pace[loop]
                alone = left * step
                # A device that seems slow may recover: only what the table rules out is hopeless.
                if left_seconds - before - after < (alone if slowness >= 1.0 else alone * slowness):
                    rejected.append(self._hopeless(request, now, before + alone * min(slowness, 1.0) + after))
                    continue
                others = outside.get(rest)
                if others is None:
                    others = outside[rest] = ways.outside(way, streams, drift)
                # Margin and tail are in the table's seconds of the loop: a slower device is like a tighter margin.
                margin = (left_seconds - others[0]) / slowness
                if margin > alone:
                    margin -= RESERVE * (margin - alone)
                # This is what `Job(…)` does, without a call in Python: it is made for every request at every step.
                job = tuple.__new__(Job, (request, left, margin, others[1] / slowness, route[at].visits))
                if loop in loops:
                    loops[loop].append(job)
                else:
                    loops[loop] = [job]
        return rejected, last, loops

    def _loop_step(
        self, loop: str, jobs: list[Job], streams: Streams, limits: Limits
    ) -> tuple[str, tuple[Request, ...]]:
        """The step that serves the loop best: the loop itself, or what brings the chosen to it."""
        fit = self._fit(loop, self._largest(loop, limits))
        kept = self._keepable(jobs, fit)
        for module in streams.modules:
            if module == loop:
                break
            urgent = [(job.margin, job.request) for job in kept if job.request.module == module]
            if urgent:
                return module, self._urgent(module, urgent, limits)
        here = [job for job in kept if job.request.module == loop]
        if here:
            return loop, tuple(job.request for job in fit.batch(here))
        # Nobody's deadline can be promised: serve whoever has most slack, rather than nobody.
        job = max(jobs, key=lambda job: job.pace)
        return job.request.module, (job.request,)

    def _keepable(self, jobs: list[Job], fit: FluidFit) -> list[Job]:
        """The requests to serve: as many as fit together.

        They are taken by rank. A promise that this would break is broken only if it keeps more requests, or as
        many in a larger batch; else the promises come first. Left out is not rejected: they wait until
        they fit, or until nothing can save them.
        """
        if fit.all_at_ease(jobs):
            return jobs
        rows = rows_of(jobs)
        if fit.rows_fit(rows):
            return jobs
        visits = np.array([job[4] for job in jobs], dtype=np.float64)
        ranked = np.argsort(-ranks(rows, visits), kind="stable")
        is_promised = rows[ranked, 0] < visits[ranked]
        promised = ranked[is_promised]
        # Mostly all promises can be kept, and there is no room for anybody else.
        kept = self._as_many_as_fit(ranked, rows, fit, guess=len(promised))
        if len(np.setdiff1d(promised, kept, assume_unique=True)):
            order = np.concatenate((promised, ranked[~is_promised]))
            faithful = self._as_many_as_fit(order, rows, fit, guess=len(promised))
            worth, faithful_worth = ((len(some), fit.turn_size(rows[some])) for some in (kept, faithful))
            kept = kept if worth > faithful_worth else faithful
        return [jobs[i] for i in kept]

    def _as_many_as_fit(self, order: Places, rows: Floats, fit: FluidFit, guess: int) -> Places:
        """The longest run from the front of `order` that fits, and whoever of the next few fits as well.

        `order` holds the places of jobs in `rows`.
        """
        run = fit.longest_run(rows[order], guess)
        kept = order[:run]
        for place in order[run + 1 : run + 1 + SECOND_CHANCES]:
            with_it = np.append(kept, place)
            if fit.rows_fit(rows[with_it]):
                kept = with_it
        return kept

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

    def _hopeless(self, request: Request, now: float, alone: float) -> Rejection:
        due = request.next_deadline - now
        return Rejection(request, f"due in {due:.3f} s, alone it takes {alone:.3f} s")

    def _fit(self, loop: str, largest: int) -> FluidFit:
        fit = self._fits.get((loop, largest))
        if fit is None:
            fit = self._fits[loop, largest] = FluidFit(self.seconds[loop], largest)
        return fit


def seconds_by_batch(table: LatencyTable, module: str) -> list[float]:
    """Seconds of a step by batch size, for every size that was measured; noise that makes it fall is levelled."""
    model = table[module]
    seconds = [0.0]
    for batch in range(1, largest_batch(table, module) + 1):
        seconds.append(max(seconds[-1], model.predict(Shape(batch))))
    return seconds
