"""A device's capacity under an SLO, from its latency table: the rate that experiments take multiples of.

Only batches count that a policy may plan (`largest_batch`) and that the device can hold.
"""

from __future__ import annotations

from collections.abc import Mapping

from neustream.latency import Shape
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable

MAX_BATCH = 64
"""Requests of a pipeline in one step: larger batches are never planned, whatever the table covers."""
MAX_SEQS = 256
"""Sequences that a language model's engine holds at once: vLLM's default."""


def largest_batch(table: LatencyTable, module: str) -> int:
    """The largest batch of this module that any policy plans: within what was measured, and at most MAX_BATCH."""
    return min(table[module].largest or MAX_BATCH, MAX_BATCH)


def llm_capacity(table: LatencyTable, *, prompt: int, max_tokens: int, dslo: float, max_seqs: int = MAX_SEQS) -> float:
    """Requests per second that the device sustains with every token on pace.

    With B requests always resident, one request lives through its own decode steps and the prefill of B
    others, `T(B) = (n − 1)·decode(B) + B·prefill(len)`, and B / T(B) of them leave per second. B is the
    largest for which T stays within dslo × the standalone time; at B = 1 a request is served alone. Neither
    `max_seqs` nor, where the table names the KV blocks, their number allows a larger B. A request counts with the
    blocks of its prompt and half of its output, as many as it holds on average.
    """
    steps = max_tokens - 1
    context = prompt + max_tokens // 2
    prefill = table[PREFILL].alone(prompt)
    decode = table[DECODE]
    allowed = dslo * (steps * decode.alone(context) + prefill)
    resident = max_seqs
    if table.kv_blocks is not None:
        resident = max(min(max_seqs, table.kv_blocks // -(-context // table.kv_block_size)), 1)

    def life(batch: int) -> float:
        return steps * decode.predict(Shape(batch, 0, 0, batch * context)) + batch * prefill

    return max(b / life(b) for b in range(1, resident + 1) if b == 1 or life(b) <= allowed)


def pipeline_capacity(table: LatencyTable, visits: Mapping[str, float], slo_scale: float) -> float:
    """Requests per second of an image pipeline on one device, in the best batch whose end is within the SLO.

    `visits` gives the mean number of visits to each module. A full batch of b takes `Σ visits × latency(b)`,
    which must not exceed slo_scale × the same sum for b = 1. No b is larger than the largest batch of the module
    that takes most of the time. Another module whose largest batch is smaller serves the b requests in several
    batches, as even as possible.
    """
    caps = {module: largest_batch(table, module) for module in visits}

    def seconds(module: str, batch: int) -> float:
        rounds = -(-batch // caps[module])
        small, extra = divmod(batch, rounds)
        predict = table[module].predict
        return extra * predict(Shape(small + 1)) + (rounds - extra) * predict(Shape(small))

    def life(batch: int) -> float:
        return sum(seconds(module, batch) * count for module, count in visits.items())

    busiest = max(visits, key=lambda module: table[module].alone(1) * visits[module])
    alone = life(1)
    return max(b / life(b) for b in range(1, caps[busiest] + 1) if b == 1 or life(b) <= slo_scale * alone)
