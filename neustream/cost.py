"""What a step costs by the latency table: its seconds, and how much of the GPU it keeps busy in them."""

from __future__ import annotations

from collections.abc import Iterable

from neustream.latency import BatchLatency, Shape
from neustream.plan import StepPlan
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable


def shape_of(requests: Iterable[Request]) -> Shape:
    """The shape of a step that runs these requests in the module that they wait for."""
    batch = work = squares = context = 0
    for request in requests:
        pending = request.pending
        batch += request.width
        work += pending
        squares += pending * pending
        context += request.context * request.width
    return Shape(batch, work, squares, context)


def step_seconds(table: LatencyTable, plan: StepPlan) -> float:
    """Seconds of the plan's step if its process has the device to itself."""
    assert plan.module is not None
    if plan.pieces:
        return mixed_seconds(table, plan)
    return table[plan.module].predict(shape_of(plan.batch))


def mixed_seconds(table: LatencyTable, plan: StepPlan) -> float:
    """Seconds of one pass over the weights for `batch` (decodes) and the prompt pieces of `pieces`.

    No table measures such a step. All its tokens go through the layers together, which costs what a prefill
    of as many tokens costs; on top of that each decode, and each piece of a prompt that is partly done, reads
    its context at the decode's price per unit. It is never cheaper than the decode step alone.
    """
    prefill, decode = table[PREFILL], table[DECODE]
    pieces = [(piece.work, piece.request.processed) for piece in plan.pieces]
    decodes = shape_of(plan.batch if plan.module == DECODE else ())
    if plan.module != DECODE:
        pieces += [(request.pending, request.processed) for request in plan.batch]
    work = sum(tokens for tokens, _ in pieces)
    squares = sum(tokens * tokens for tokens, _ in pieces)
    begun = sum(processed == 0 for _, processed in pieces)  # what a prompt costs beside its tokens is paid once
    shape = Shape(begun, work + decodes.batch, squares + decodes.batch, work)
    per_context = decode.slope
    read = decodes.context + sum(processed for _, processed in pieces)
    together = prefill.predict(shape) + per_context * read
    return max(together, decode.predict(decodes)) if decodes.batch else together


def gpu_demand(table: LatencyTable, module: str, batch: int) -> float:
    """Share of a step's seconds in which the GPU computes; the rest is launching kernels and the host.

    A table does not say so outright. On a full GPU each further request costs its own arithmetic, so the slope
    over the upper half of the measured batch sizes is the arithmetic of one request, and a step of b
    requests keeps the GPU busy for b times that, at most all of the step.
    """
    model = table[module]
    if not isinstance(model, BatchLatency) or len(model.batch) < 2:
        return 1.0
    middle = len(model.batch) // 2 if len(model.batch) > 2 else 0
    slope = (model.seconds[-1] - model.seconds[middle]) / (model.batch[-1] - model.batch[middle])
    return min(max(slope, 0.0) * batch / model.predict(Shape(batch)), 1.0)


def remaining_alone(request: Request, table: LatencyTable) -> float:
    """Seconds that the request still needs if nothing else runs: Σ over its stages of latency(1) × visits left."""
    size = request.context
    return sum(
        table[stage.module].alone(size) * left for stage, left in zip(request.route, request.left, strict=True) if left
    )
