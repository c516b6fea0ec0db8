"""Which steps of a language model are timed: prefills over lengths and batch sizes, decodes over batch and context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, NamedTuple

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


QUICK_PIECES = (16, 64, 128, 256, 512, 1024)
FULL_PIECES = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)
"""Tokens of a piece that rides with decodes."""
QUICK_RIDES = ((4, 128, 0), (32, 128, 0), (16, 512, 512))
FULL_RIDES = ((1, 128, 0), (8, 128, 0), (32, 128, 0), (96, 128, 0), (16, 512, 0), (16, 128, 512), (16, 128, 1024))
"""(decodes, context of each, tokens of the piece's prompt before it)."""
UNSEEN_MIXED = (
    (3, 300, ((100, 0),)), (20, 150, ((40, 60),)), (48, 200, ((300, 0), (150, 100))), (10, 600, ((700, 200),)),
)  # fmt: skip
"""Mixed steps that are predicted, not fitted."""


class MixedShape(NamedTuple):
    """What the price of a mixed step depends on; see `neustream.latency.MixedLatency.predict`."""

    work: int
    attended: int
    decodes: int
    read: int


@dataclass(frozen=True, slots=True)
class Point:
    """One step to time: a prefill of prompts of these lengths, or a decode of sequences of these contexts.

    A mixed step decodes these contexts, with pieces of prompts beside them.
    """

    module: Literal["prefill", "decode", "mixed"]
    lengths: tuple[int, ...]
    held_out: bool = False
    """Whether the fit must not see it."""
    num_layers: int = 0
    """At which depth it is timed; 0: not decided yet."""
    pieces: tuple[tuple[int, int], ...] = ()
    """Tokens of each piece of a mixed step, and those of its prompt that were processed before."""

    def __str__(self) -> str:
        runs = [(length, len(list(same))) for length, same in groupby(self.lengths)]
        sizes = "+".join(f"{count}x{length}" for length, count in runs)
        beside = "".join(f" and {tokens} after {done}" for tokens, done in self.pieces)
        return f"{self.module} {sizes}{beside} at {self.num_layers} layers"

    @property
    def mixed_shape(self) -> MixedShape:
        """As the model of mixed steps sees it."""
        work = sum(tokens for tokens, _ in self.pieces)
        attended = sum(tokens * tokens + 2 * tokens * done for tokens, done in self.pieces)
        read = sum(self.lengths) + sum(done for _, done in self.pieces)
        return MixedShape(work, attended, len(self.lengths), read)

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


def mixed_points(*, quick: bool, max_len: int, max_tokens: int, max_work: int) -> list[Point]:
    """The points of mixed steps, largest first, within the same limits; `max_work` are a step's tokens."""
    pieces, rides = (QUICK_PIECES, QUICK_RIDES) if quick else (FULL_PIECES, FULL_RIDES)
    points = [
        Point("mixed", (context,) * decodes, pieces=((tokens, done),))
        for decodes, context, done in rides
        for tokens in pieces
    ]
    points += [
        Point("mixed", (context,) * decodes, held_out=True, pieces=parts) for decodes, context, parts in UNSEEN_MIXED
    ]

    def fits(point: Point) -> bool:
        longest = max(*point.lengths, *(sum(piece) for piece in point.pieces))
        work, _, decodes, read = point.mixed_shape
        return longest <= max_len and read + work <= max_tokens and work + decodes <= max_work

    return sorted(filter(fits, points), key=lambda point: -sum(point.mixed_shape[::3]))
