"""Demand of language-model requests: a prefill, then decode steps whose tokens are due one after another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neusim.bound.demand import Crowd, Demand, Floats, Resources, Seats, levelled, moments
from neustream.latency import FITTED_TOKENS, Shape, TokensLatency
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable

PREFILL_SHARES = (1.0, 0.5, 0.1, 0.03)
"""Prices of a prompt token, as shares of its least price in a prefill: chunks may ride along with decodes for less."""
PACES = (0.0, 0.003, 0.006, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
"""Prices of a request's time, as shares of the device's time."""
MEMORY_PRICES = (0.5, 2.0, 20.0)
"""Prices of the whole memory for a second, as multiples of the device's second."""
MEMORY_SHARES = (0.5, 0.03)
MEMORY_PACES = (0.0, 0.0125, 0.1)
"""Shares and paces that are tried with each price of memory."""
ROUNDING = 1e-9


class Rate(NamedTuple):
    """At which prices requests are charged. All are shares or multiples of what the device's own seconds are worth."""

    share: float
    pace: float
    memory: float = 0.0


RATES = (
    *(Rate(share, pace) for share in PREFILL_SHARES for pace in PACES),
    *(Rate(share, pace, memory) for memory in MEMORY_PRICES for share in MEMORY_SHARES for pace in MEMORY_PACES),
)


class Prices(NamedTuple):
    """Seconds of the device: for the first token and for each later one, by context (index: tokens)."""

    first: Floats
    later: Floats


class StepCosts:
    """Lower bounds of what steps of one device cost, by the table."""

    def __init__(self, table: LatencyTable, seats: int, resources: Resources, crowd: Crowd) -> None:
        """`seats` bounds the sequences of one step that count; the crowd may fill it up."""
        decode = table[DECODE]
        self.slope = decode.slope
        """Seconds of a step per token of context in it."""
        if self.slope < 0:
            raise ValueError(
                f"the bound needs a decode step that context makes no shorter, got {self.slope:g} s a token"
            )
        self.sequences = np.arange(1, seats + 1)
        largest = min(crowd.seats, resources.max_batch or crowd.seats)
        base = [decode.predict(Shape(batch)) + resources.overhead for batch in range(1, largest + 1)]
        self.base = levelled(base)[:seats]
        """Seconds of a decode step before its context, for b sequences (index b − 1) or more."""
        self.work, self.prefill = _least_prefill(table[PREFILL], crowd)
        """Corners of the seconds of a step by its tokens, where it does more than decode; linear between them."""
        self.prefill = self.prefill + resources.overhead
        self.per_token = float((self.prefill / self.work).min())
        self.context = np.arange(crowd.longest + 1)
        self.total = math.inf if resources.kv_blocks is None else resources.kv_blocks
        self.blocks = -(-self.context // resources.block_size) / crowd.widest
        """Blocks of memory per seat, by context."""
        self.alone = self._alone()
        """Seconds before a prompt of this length can be through: in one step, or in several pieces."""
        self.fits = self._fits(crowd.smallest + 1)
        """Whether a decode step of b sequences (row b − 1) can hold one of this context (column)."""
        self._ridden = [self._corners(batch) for batch in self.sequences]

    def _alone(self) -> Floats:
        whole = np.interp(self.context, self.work, self.prefill)
        more = np.minimum.accumulate(self.prefill[::-1])[::-1]  # a step of more tokens may be the faster one
        after = np.searchsorted(self.work, self.context)
        whole = np.minimum(whole, np.append(more, math.inf)[after])
        pieces = np.maximum(self.context * self.per_token, 2 * self.prefill.min())
        return np.minimum(whole, pieces)

    def _fits(self, least: int) -> NDArray[np.bool_]:
        others = self.blocks[min(least, len(self.blocks) - 1)]
        room = (self.total - self.blocks) / others if others else np.full(len(self.blocks), math.inf)
        fits: NDArray[np.bool_] = self.sequences[:, None] <= np.floor(room + ROUNDING) + 1
        return fits

    def prices(self, rate: Rate) -> Prices:
        """Prices such that no step costs less than all that it serves is charged.

        A step of b decodes and w prompt tokens takes C = max(base(b), prefill(b + w)) and `slope` per token of
        context. Charging each request `pace` for every second it spends in decode steps, and `memory` / total for
        every second that it holds a block in, a step's worth is its seconds × (1 + pace·b + memory·blocks / total).
        What remains of C × (1 + pace·b) after `prompt`·w is split over the b decodes; each pays its own context and
        its own blocks on top. A request may also lose its memory, and have a later token come out of a prefill of all
        its context: it is charged for what is cheaper.
        """
        prompt = rate.share * self.per_token
        worth = 1.0 + rate.pace * self.sequences
        rest = self.base * worth  # no prompt tokens
        for batch, (work, seconds) in enumerate(self._ridden):
            ridden = seconds * worth[batch] - prompt * work
            rest[batch] = min(rest[batch], ridden.min(initial=math.inf))
        held = rate.memory / self.total * self.blocks
        each = (rest / self.sequences)[:, None] + self.slope * worth[:, None] * self.context
        each = each + held * (self.base[:, None] + self.slope * self.context)
        prefilled = prompt * self.context + held * self.prefill.min()
        decoded = np.where(self.fits, each, math.inf).min(axis=0)
        scale = 1.0 + rate.memory
        return Prices(prefilled / scale, np.minimum(decoded, prefilled) / scale)

    def _corners(self, batch: int) -> tuple[Floats, Floats]:
        """`(work, seconds)` of the steps in which prompt tokens ride with so many decodes: the corners, by tokens.

        Those are the corners of the prefill's seconds, where they cross those of the decodes, and one token.
        """
        level = float(self.base[batch - 1])
        work, seconds = self.work, self.prefill
        crosses = (seconds[:-1] - level) * (seconds[1:] - level) < 0
        rise = np.where(crosses, seconds[1:] - seconds[:-1], 1.0)
        where = work[:-1] + (level - seconds[:-1]) / rise * (work[1:] - work[:-1])
        # One prompt token is the least that rides along; it is no corner, and may be the cheapest of all.
        one_rides = float(np.interp(batch + 1, work, seconds))
        points = np.concatenate([work, where[crosses], [batch + 1]])
        costs = np.concatenate([seconds, np.full(crosses.sum(), level), [one_rides]])
        more = points >= batch + 1
        return points[more] - batch, np.maximum(costs, level)[more]


def _least_prefill(model: object, crowd: Crowd) -> tuple[Floats, Floats]:
    """`(work, seconds)`: corners of the least seconds of a step of any number of the crowd's tokens.

    A piece has at most all that one request has. At whole numbers of tokens between two corners the least seconds lie
    on the line between them.
    """
    if not isinstance(model, TokensLatency):
        raise ValueError(f"the bound needs a prefill of kind 'tokens', got {type(model).__name__}")
    tokens = crowd.units
    longest_piece = 1 if model.coef[2] >= 0 else min(crowd.longest, FITTED_TOKENS)
    grid, floor, offset, first = _beyond_grid(model)

    def beyond(work: float) -> float:
        """The formula's line past the grid, for the pieces whose squares cost least; it may be below the floor."""
        return offset + model.formula(work, work * longest_piece)

    rise = beyond(1.0) - beyond(0.0)
    crossing = (floor - beyond(0.0)) / rise if rise else 0.0
    inside = {1, tokens, *(point for point in grid if point <= tokens)}
    outside = {edge for edge in (first, crossing) if first <= edge <= tokens}
    work = np.array(sorted(inside | outside), dtype=float)
    seconds = [
        float(np.interp(at, model.tokens, model.seconds)) if at < first else max(beyond(at), floor) for at in work
    ]
    return work, np.array(seconds)


def _beyond_grid(model: TokensLatency) -> tuple[tuple[int, ...], float, float, int]:
    """The grid's points, what more tokens cost at least, what is added to the formula, and from how many tokens."""
    if not model.tokens:
        return (), 0.0, 0.0, 1
    last = model.tokens[-1]
    return model.tokens, model.seconds[-1], model.seconds[-1] - model.formula(last, last**2), last + 1


def llm_demands(
    requests: Sequence[Request], table: LatencyTable, resources: Resources, crowd: Crowd
) -> tuple[NDArray[np.bool_], list[Demand]]:
    """Which requests could make it at all, and the demands of all; `requests` come in order of arrival."""
    arrivals = np.array([request.arrival for request in requests])
    due = [_deadlines(request) for request in requests]
    ends = np.maximum([times[-1] for times in due], arrivals)
    seats = max(Seats(arrivals, ends, [request.width for request in requests]).most, 1)
    costs = StepCosts(table, min(seats, resources.max_batch or seats), resources, crowd)
    eligible = np.array([_is_feasible(request, times, costs) for request, times in zip(requests, due, strict=True)])
    until = moments(np.concatenate([[times[0] for times in due], [times[-1] for times in due]]))
    demands = list(_demands(requests, due, until, costs)) if len(until) else []
    return eligible, demands


def _deadlines(request: Request) -> Floats:
    """When each of its tokens is due, at the latest: a later token's deadline counts for the earlier ones too."""
    times = np.array([request.deadlines.at(unit) for unit in range(1, request.max_units + 1)])
    latest: Floats = np.minimum.accumulate(times[::-1])[::-1]
    return latest


def _is_feasible(request: Request, due: Floats, costs: StepCosts) -> bool:
    """Whether it could make it with the whole device to itself, or beside others that make its steps no slower."""
    contexts = request.size + np.arange(1, len(due))
    steps = np.minimum(costs.base[0] + costs.slope * contexts, costs.alone[contexts])
    earliest = request.arrival + costs.alone[request.size] + np.concatenate([[0.0], np.cumsum(steps)])
    largest = costs.blocks[request.size + max(len(due) - 1, 0)]
    return bool((earliest <= due + ROUNDING).all() and largest <= costs.total)


def _demands(requests: Sequence[Request], due: Sequence[Floats], until: Floats, costs: StepCosts) -> Iterator[Demand]:
    tokens = np.array([np.searchsorted(times, until, side="right") for times in due])
    steps = np.maximum(tokens - 1, 0)
    budget = np.array(
        [
            times[done] - request.arrival - costs.alone[request.size]
            for request, times, done in zip(requests, due, steps, strict=True)
        ]
    )
    budget = np.where(steps > 0, np.maximum(budget, 0.0), 0.0) + ROUNDING
    size = np.array([request.size for request in requests])[:, None]
    width = np.array([request.width for request in requests])[:, None]
    for rate in RATES:
        if rate.memory and not math.isfinite(costs.total):
            continue
        prices = costs.prices(rate)
        # The later token k (from 1) attends to the prompt and k tokens.
        paid = np.concatenate([[0.0], np.cumsum(prices.later)])
        work = prices.first[size] + paid[size + 1 + steps] - paid[size + 1] - rate.pace / (1 + rate.memory) * budget
        yield Demand(until, np.where(tokens > 0, width * np.maximum(work, 0.0), 0.0))
