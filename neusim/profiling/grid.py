"""Which steps of a language model are timed: prefills over lengths and batch sizes, decodes over batch and context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from neustream.latency import Shape

CONTEXT_TOKENS = 65536
"""Σ context up to which decode is measured; 256 sequences of 256, or 128 of 512."""

QUICK_PREFILL = {17: (1,), 34: (1,), 66: (1,), 130: (1, 2), 252: (1, 4), 520: (1, 8), 1016: (1, 8), 2000: (16,)}
FULL_PREFILL = {
    9: (1,), 17: (1,), 25: (1,), 34: (1, 2), 50: (1,), 66: (1, 2), 98: (1,), 130: (1, 2), 184: (1, 8),
    252: (1, 2, 4), 400: (1, 16), 520: (1, 2, 4, 8), 800: (1, 16, 32), 1016: (1, 2, 4, 8), 1540: (1, 4, 28),
    2000: (2, 4, 8, 16),
}  # fmt: skip
"""Σ length: over how many prompts. Several compositions of one sum tell what the length of each costs. Powers of two
are avoided: matrix products of such sizes are faster per token than those of the sizes that a workload brings."""
QUICK_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FULL_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
QUICK_CONTEXTS = (64, 512)
FULL_CONTEXTS = (32, 128, 512, 1024)

UNSEEN_PREFILL: tuple[tuple[int, ...], ...] = (
    (40,), (200,), (700,), (100, 100, 100), (12, 37, 88, 150, 301), (10, 25, 40, 60, 80, 110, 130, 170, 220, 400),
)  # fmt: skip
"""Prompts whose step is predicted, not fitted; the longer ones are what a log-normal workload sends."""
UNSEEN_DECODE = ((1, 300), (3, 200), (10, 150), (20, 350), (40, 120), (80, 250), (160, 200))
"""(batch, context) likewise."""


@dataclass(frozen=True, slots=True)
class Point:
    """One step to time: a prefill of prompts of these lengths, or a decode of sequences of these contexts."""

    module: Literal["prefill", "decode"]
    lengths: tuple[int, ...]
    held_out: bool = False
    """Whether the fit must not see it."""
    num_layers: int = 0
    """At which depth it is timed; 0: not decided yet."""

    def __str__(self) -> str:
        runs = [(length, len(list(same))) for length, same in groupby(self.lengths)]
        sizes = "+".join(f"{count}x{length}" for length, count in runs)
        return f"{self.module} {sizes} at {self.num_layers} layers"

    @property
    def shape(self) -> Shape:
        """As the latency models see it."""
        total = sum(self.lengths)
        if self.module == "decode":
            return Shape(len(self.lengths), context=total)
        return Shape(len(self.lengths), total, sum(length * length for length in self.lengths), total)

    def at(self, num_layers: int) -> Point:
        """The same step of a model of this depth."""
        return replace(self, num_layers=num_layers)


def llm_points(*, quick: bool, max_len: int, max_tokens: int = CONTEXT_TOKENS) -> list[Point]:
    """The points of a grid: those whose sequences stay within `max_len` and whose Σ context within `max_tokens`.

    Decodes first, and the largest first: the allocator keeps what they needed, and later steps find it as in a
    server that has been running for a while.
    """
    sums = QUICK_PREFILL if quick else FULL_PREFILL
    prefill = [(total // batch,) * batch for total, batches in sums.items() for batch in batches]
    batches, contexts = (QUICK_BATCHES, QUICK_CONTEXTS) if quick else (FULL_BATCHES, FULL_CONTEXTS)
    points = [Point("prefill", lengths) for lengths in prefill]
    points += [Point("prefill", lengths, held_out=True) for lengths in UNSEEN_PREFILL]
    points += [Point("decode", (context,) * batch) for context in contexts for batch in batches]
    points += [Point("decode", (context,) * batch, held_out=True) for batch, context in UNSEEN_DECODE]
    fitting = [p for p in points if max(p.lengths) <= max_len and sum(p.lengths) <= max_tokens]

    def rank(point: Point) -> tuple[str, int, int]:
        return point.module, -len(point.lengths) if point.module == "decode" else 0, -sum(point.lengths)

    return sorted(fitting, key=rank)
