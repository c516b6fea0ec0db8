"""A device's capacity under an SLO, from its latency table: the rate that experiments take multiples of."""

from __future__ import annotations

from neustream.latency import Shape
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable

MAX_BATCH = 256


def llm_capacity(table: LatencyTable, *, prompt: int, max_tokens: int, dslo: float, max_seqs: int = MAX_BATCH) -> float:
    """Requests per second that the device sustains with every token on pace.

    With B requests always resident, one request lives through its own decode steps and the prefill of B
    others, `T(B) = (n − 1)·decode(B) + B·prefill(len)`, and B / T(B) of them leave per second. B is the
    largest for which T stays within dslo × the standalone time; at B = 1 a request is served alone.
    """
    steps = max_tokens - 1
    context = prompt + max_tokens // 2
    prefill = table[PREFILL].predict(Shape(1, prompt, prompt * prompt, prompt))
    decode = table[DECODE]
    allowed = dslo * (steps * decode.predict(Shape(1, 0, 0, context)) + prefill)

    def life(batch: int) -> float:
        return steps * decode.predict(Shape(batch, 0, 0, batch * context)) + batch * prefill

    return max(b / life(b) for b in range(1, max_seqs + 1) if b == 1 or life(b) <= allowed)


def pipeline_capacity(table: LatencyTable, visits: dict[str, float], slo_scale: float, max_batch: int = 64) -> float:
    """Requests per second of an image pipeline on one device, in the best batch whose end is within the SLO.

    `visits` gives the mean number of visits to each module. A full batch of b takes `Σ visits × latency(b)`,
    which must not exceed slo_scale × the same sum for b = 1.
    """

    def life(batch: int) -> float:
        return sum(table[module].predict(Shape(batch)) * count for module, count in visits.items())

    alone = life(1)
    return max(b / life(b) for b in range(1, max_batch + 1) if b == 1 or life(b) <= slo_scale * alone)
