"""A language model's step that is put together piece by piece, within room and time; `slack` and its peers use it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from neustream.cost import StepPrice, StepSums, begun
from neustream.plan import MIXED, Limits, Piece, Rejection, StepPlan
from neustream.policies.base import decode_shape, seats_taken
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams

NOBODY = Streams((PREFILL, DECODE))


def tightest_pace(requests: Iterable[Request]) -> float:
    """The least seconds per unit that any of these was promised; infinite where none was."""
    return min([r.deadlines.pace for r in requests if r.deadlines.pace is not None], default=math.inf)


def own_due(request: Request) -> float:
    """When the next unit is due if nobody's lead counts: one pace a unit, from when the first one came.

    Never after the deadline. Of requests without a pace, or before their first unit, it is the deadline.
    """
    pace, first = request.deadlines.pace, request.first_unit_at
    if pace is None or first is None:
        return request.next_deadline
    return min(request.next_deadline, first + (request.units + request.in_flight) * pace)


class MixedStep:
    """A step under construction: `batch` decodes, pieces of prompts join it while there is room and time.

    A prompt takes its seat and the memory of all its tokens with its first piece. Once a new prompt finds neither, no
    other new one is let past it, but those that have begun go on.
    """

    __slots__ = ("_blocks", "_drift", "_limits", "_price", "_seats", "_work", "batch", "is_closed", "pieces", "sums")

    def __init__(self, price: StepPrice, streams: Streams, limits: Limits, batch: Collection[Request]) -> None:
        shape = decode_shape(batch)
        size = limits.block_size
        growth = sum([1 for request in streams[DECODE] if (request.context - 1) % size == 0])
        held = seats_taken(streams[DECODE]) + sum([r.width for r in streams[PREFILL] if r.is_resident])
        self.batch = tuple(batch)
        self.pieces: list[Piece] = []
        self.sums = StepSums(decodes=shape.batch, read=shape.context)
        self.is_closed = False
        """Whether no new prompt may join, because one that came first found no seat or memory."""
        self._price = price
        self._limits = limits
        drift = limits.drift
        alone = drift.get(DECODE if batch else PREFILL, 1.0)
        self._drift = drift.get(MIXED, alone) if batch else alone
        self._seats = limits.max_resident - held
        self._blocks = limits.free_blocks - limits.spare_blocks - growth
        self._work = limits.max_work - shape.batch

    def beside(self, decodes: int, context: int) -> MixedStep:
        """A step to ask prices of: the decodes of this one and so many more, of so much context in all."""
        result = MixedStep(self._price, NOBODY, self._limits, ())
        result.sums = self.sums._replace(decodes=self.sums.decodes + decodes, read=self.sums.read + context)
        result._drift = self._drift
        return result

    @property
    def seconds(self) -> float:
        """Predicted seconds of the step as it stands."""
        return self._price.of(self.sums) * self._drift

    @property
    def num_tokens(self) -> int:
        """Tokens in the step: one for each decode, and those of the pieces."""
        return self.sums.decodes + self.sums.work

    def seconds_with(self, tokens: int) -> float:
        """Predicted seconds with one more piece, of `tokens` tokens of a new prompt."""
        return self._price.of(self.sums.with_piece(tokens)) * self._drift

    def largest(self, seconds: float, most: int, done: int = 0) -> int:
        """Tokens of the largest piece, at most `most`, with which the step takes at most `seconds`."""
        if math.isinf(seconds) or self._price.of(self.sums.with_piece(most, done)) * self._drift <= seconds:
            return most if most > 0 else 0
        return self._price.largest_piece(seconds / self._drift, self.sums, done, most)

    def room(self, request: Request) -> int:
        """Tokens of this prompt that seats, memory and the device's tokens per step leave room for."""
        if not request.is_resident and (
            self._seats < request.width or self._blocks < self._limits.blocks(request.pending)
        ):
            return 0
        return max(min(request.pending, self._work), 0)

    def take(self, request: Request, tokens: int) -> None:
        """Let a piece of `tokens` tokens join, for which there is room."""
        if not request.is_resident:
            self._seats -= request.width
            self._blocks -= self._limits.blocks(request.pending)
        self._work -= tokens
        self.pieces.append(Piece(request, tokens))
        self.sums = self.sums.with_piece(tokens, begun(request))

    def fill(self, queue: Iterable[Request], tokens: float, seconds: float = math.inf, least: int = 0) -> bool:
        """Let prompts join in this order, for at most `tokens` tokens and until the step takes `seconds`.

        `least` tokens of prompts join whatever the step then takes. Returns whether more would have fitted: False once
        a prompt had to be cut, for only the last piece of a step may leave its prompt unfinished.
        """
        for request in queue:
            is_new = not request.is_resident
            if is_new and self.is_closed:
                continue
            room = self.room(request)
            if not room:
                if self._work <= 0:
                    return False
                self.is_closed = True
                continue
            most = room if tokens - self.sums.work >= room else int(tokens - self.sums.work)
            if most <= 0:
                return False
            piece = max(self.largest(seconds, most, begun(request)), min(least - self.sums.work, most))
            if piece <= 0:
                return False
            is_whole = piece == request.pending
            self.take(request, piece)
            if not is_whole:
                return False
        return True

    def join(self, others: Sequence[Request], seconds: float) -> None:
        """Let decodes join that were left out so far, in this order, until the step takes `seconds`.

        If nothing is in the step yet, the first joins whatever it takes.
        """
        sums, decodes, read = [self.sums], self.sums.decodes, self.sums.read
        for request in others:
            decodes += request.width
            read += request.context * request.width
            sums.append(self.sums._replace(decodes=decodes, read=read))
        low = 0 if self.batch or self.pieces else min(1, len(others))
        high = len(others)
        while low < high:
            middle = (low + high + 1) // 2
            has_work = sums[middle].decodes - self.sums.decodes <= self._work or not self.pieces
            if has_work and self._price.of(sums[middle]) * self._drift <= seconds:
                low = middle
            else:
                high = middle - 1
        self.batch += tuple(others[:low])
        self._work -= sums[low].decodes - self.sums.decodes
        self.sums = sums[low]

    def plan(self, rejected: Sequence[Rejection] = ()) -> StepPlan:
        """The step as it stands."""
        pieces, given_up = tuple(self.pieces), tuple(rejected)
        if self.batch:
            return StepPlan(DECODE, self.batch, given_up, pieces)
        return StepPlan(PREFILL, rejected=given_up, pieces=pieces) if pieces else StepPlan(rejected=given_up)
