"""How much of a step's seconds the GPU is busy, by the latency table; the seconds themselves are the core's."""

from __future__ import annotations

from neustream.cost import mixed_seconds, step_seconds
from neustream.latency import BatchLatency, Shape
from neustream.tables import LatencyTable

__all__ = ["gpu_demand", "mixed_seconds", "step_seconds"]


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
