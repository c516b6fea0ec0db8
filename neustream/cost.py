"""What a step costs by the latency table: its seconds, and how much of the GPU it keeps busy in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from neustream.latency import (
    FITTED_TOKENS,
    BatchLatency,
    ContextLatency,
    Shape,
    TokensLatency,
    interpolate,
    levelled,
)
from neustream.plan import StepPlan
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable, likely_square

MOST_TOKENS = 1 << 17
"""The largest piece that is looked for where nothing bounds it."""
LEAST_SECONDS = 1e-9
"""Of a step, where a fit would have it take less."""


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


def step_seconds(table: LatencyTable, plan: StepPlan, price: StepPrice | None = None) -> float:
    """Seconds of the plan's step if its process has the device to itself; `price` is that of the table, if at hand."""
    assert plan.module is not None
    if plan.pieces or (plan.module == PREFILL and any(begun(request) for request in plan.batch)):
        return (price or StepPrice(table)).of(step_sums(plan))
    return table[plan.module].predict(shape_of(plan.batch))


def begun(request: Request) -> int:
    """Units of its input that its first stage need not process again: done, or spared by a prefix cache."""
    return max(request.processed, request.cached)


class StepSums(NamedTuple):
    """What the price of a language model's step depends on. Small enough to price many candidates."""

    work: int = 0
    """Σw: tokens of the pieces."""
    squares: int = 0
    """Σw²."""
    crossed: int = 0
    """Σw·p: tokens of each piece × those of its prompt that were processed before it."""
    begun: int = 0
    """Prompts that begin with their piece."""
    decodes: int = 0
    """Sequences that decode."""
    read: int = 0
    """Context that is read: of all that decode, and the p of all pieces."""

    def with_piece(self, tokens: int, done: int = 0) -> StepSums:
        """The same step with one more piece, of `tokens` tokens of a prompt of which `done` were processed before."""
        work, squares, crossed, begun, decodes, read = self
        return StepSums(
            work + tokens, squares + tokens * tokens, crossed + tokens * done, begun + (not done), decodes, read + done
        )


def step_sums(plan: StepPlan) -> StepSums:
    """The sums of a plan's step; a prompt in the batch of a prefill is a piece of all that it still needs."""
    pieces = [(piece.work, begun(piece.request)) for piece in plan.pieces]
    decodes = shape_of(plan.batch) if plan.module != PREFILL else Shape(0)
    if plan.module == PREFILL:
        pieces += [(request.pending, begun(request)) for request in plan.batch]
    sums = StepSums(decodes=decodes.batch, read=decodes.context)
    for tokens, done in pieces:
        sums = sums.with_piece(tokens, done)
    return sums


def step_price(table: LatencyTable) -> StepPrice | None:
    """What steps with pieces cost by this table; None where it has no modules that can be asked."""
    is_llm = isinstance(table.modules.get(PREFILL), TokensLatency)
    return StepPrice(table) if is_llm and isinstance(table.modules.get(DECODE), ContextLatency) else None


class StepPrice:
    """What steps of a language model with pieces of prompts in them cost, by its table. Made once, asked often.

    A table may have measured such steps (`LatencyTable.mixed`). Else they are put together from the other two:

    - The tokens of all pieces and decodes pass through the layers together: that costs what a prefill of as many
      tokens costs, and no less than the decodes' own step does before its context. The prefill's grid is levelled
      for this (`neustream.latency.levelled`): a piece that grows never makes the step shorter.
    - Each decode reads its context, and each piece the part of its prompt before it, at the decode's price per token.
    - Each token of a piece attends to all of that part: so many pairs, at twice the prefill's price per square.
      Where the prefill's fit found no such price it is `neustream.tables.likely_square`.
    - What a prompt costs beside its tokens is paid with its first piece.

    So seconds never fall as any of the sums grows, and are at least those of the decodes alone. Raises ValueError for
    a table without a prefill of kind `tokens` and a decode of kind `context`.
    """

    __slots__ = (
        "_base",
        "_grid",
        "_last",
        "_seconds",
        "decode",
        "mixed",
        "per_prompt",
        "per_read",
        "per_token",
        "square",
    )

    def __init__(self, table: LatencyTable) -> None:
        prefill, decode = table[PREFILL], table[DECODE]
        if not isinstance(prefill, TokensLatency) or not isinstance(decode, ContextLatency):
            raise ValueError(
                f"the table of {table.model}: steps with pieces need a prefill by tokens, a decode by context"
            )
        a, b, c = prefill.coef
        self.mixed = table.mixed
        self.decode = decode
        self.per_token = max(b, 0.0)
        """Seconds of a further token of a long prompt, before its attention."""
        self.square = c if c > 0.0 else likely_square(prefill, decode)
        """Seconds for each square of a prompt's tokens; a pair of token and earlier token costs twice that."""
        self.per_read = decode.slope
        """Seconds for each token of context that is read."""
        self.per_prompt = prefill.per_prompt
        self._base = a
        self._grid = prefill.tokens
        self._seconds = levelled(prefill.seconds)
        self._last = prefill.tokens[-1] if prefill.tokens else FITTED_TOKENS if c <= 0.0 else 0
        """A prompt's own attention is in the price of its tokens up to here."""

    def seconds(self, work: int, squares: int, crossed: int, begun: int, decodes: int, read: float) -> float:
        """Seconds of a step of these sums (see `StepSums`). Without pieces it is the decode step's."""
        alone = self.decode.base(decodes) if decodes else 0.0
        if work <= 0:
            return alone + self.per_read * read if decodes else 0.0
        if self.mixed is not None:
            measured = self.mixed.predict(work, squares + 2 * crossed, decodes, read)
            return max(measured, alone + self.per_read * read) + self.per_prompt * begun
        seconds = max(self._layers(work + decodes), alone) + self.per_read * read + self.per_prompt * begun
        own = squares + decodes - self._last * self._last
        return seconds + self.square * (2 * crossed + (own if own > 0 else 0))

    def of(self, sums: StepSums) -> float:
        """Seconds of a step of these sums."""
        return self.seconds(*sums)

    def largest_piece(self, seconds: float, sums: StepSums, done: int = 0, most: int = MOST_TOKENS) -> int:
        """Tokens of the largest piece that may join the step for it to take at most `seconds`; at most `most`.

        `done` tokens of its prompt were processed before. 0: not even one token fits.
        """
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(*sums.with_piece(middle, done)) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def _layers(self, tokens: int) -> float:
        """Seconds of so many tokens in the layers, with the attention of prompts up to `_last`."""
        grid = self._grid
        if not grid:
            return max(self._base + self.per_token * tokens, LEAST_SECONDS)
        if tokens <= grid[0]:
            return self._seconds[0]
        if tokens <= grid[-1]:
            return interpolate(grid, self._seconds, tokens)
        return self._seconds[-1] + self.per_token * (tokens - grid[-1])


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
