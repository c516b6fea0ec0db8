"""neustream, loop-module rule: denoising steps (and what stands before and after them) in shared batches."""

from __future__ import annotations

from neustream.capacity import MAX_BATCH, largest_batch
from neustream.cost import remaining_alone
from neustream.latency import Shape
from neustream.plan import Limits, Rejection, StepPlan
from neustream.policies.base import USUAL, PolicyContext
from neustream.request import Request
from neustream.streams import Streams
from neustream.tables import LatencyTable

DELTA = 0.95
"""Share of the SLO-scaled step that a batched step may take (the paper's δ)."""


def batch_cap(table: LatencyTable, module: str, slo_scale: float, delta: float = DELTA) -> int:
    """The largest b with latency(b) < latency(1) × slo_scale × δ, within what was measured; at least 1."""
    model = table[module]
    bound = model.predict(Shape(1)) * slo_scale * delta
    sizes = range(1, largest_batch(table, module) + 1)
    return max((b for b in sizes if model.predict(Shape(b)) < bound), default=1)


class NeuStreamLoop:
    """Batches requests of any step count at every step; nobody is passed over twice while others were not once.

    The context's `slo_scale` bounds the batch, so that a request whose every step runs in a full batch still meets
    an SLO of that scale. Where one device runs several modules, those that are visited once go before
    the loop, or nobody could join its batches (text encoder) or leave them (VAE) while it has requests; among
    them the one nearest to the end of the pipeline is first: its requests are the closest to counting.
    """

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL) -> None:
        self.table = table
        self.margin = context.handover if context.margin is None else context.margin
        self.caps = {module: batch_cap(table, module, context.slo_scale) for module in table.modules}

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        rejected: list[Rejection] = []
        chosen: tuple[str, list[Request]] | None = None
        for module in reversed(streams.modules):
            keep: list[Request] = []
            for request in streams[module]:
                if self._is_hopeless(now, request):
                    due = request.next_deadline - now
                    reason = f"due in {due:.3f} s, alone it takes {remaining_alone(request, self.table):.3f} s"
                    rejected.append(Rejection(request, reason))
                else:
                    keep.append(request)
            if keep and (chosen is None or (_is_loop(chosen[1]) and not _is_loop(keep))):
                chosen = module, keep
        if chosen is None:
            return StepPlan(rejected=tuple(rejected))
        module, keep = chosen
        cap = min(self.caps[module], limits.max_batch.get(module, MAX_BATCH))
        keep.sort(key=lambda request: (request.passes, request.arrival))
        return StepPlan(module, tuple(keep[:cap]), tuple(rejected))

    def _is_hopeless(self, now: float, request: Request) -> bool:
        margin = self.margin if request.stage + 1 < len(request.route) else 0.0
        return request.next_deadline - now <= remaining_alone(request, self.table) + margin


def _is_loop(waiting: list[Request]) -> bool:
    """Whether requests visit the module they wait for several times in a row."""
    return any(request.route[request.stage].visits > 1 for request in waiting)
