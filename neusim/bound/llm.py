"""Demand of language-model requests: a prefill, then decode steps whose tokens are due one after another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neusim.bound.demand import Demand, Floats, Seats, moments
from neustream.latency import Shape, TokensLatency
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable

PREFILL_SHARES = (1.0, 0.5, 0.0)
"""Prices of a prompt token, as shares of its least price in a prefill: chunks may ride along with decodes for less."""
PACES = (0.0, 0.003, 0.006, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
"""Prices of a request's time, as shares of the device's time."""
ROUNDING = 1e-9


class Prices(NamedTuple):
    """Seconds of the device: per prompt token, and per decode step by its context (index: tokens); per second spent."""

    prompt: float
    decode: Floats
    time: float


class StepCosts:
    """Lower bounds of what steps of one device cost, by the table."""

    def __init__(self, table: LatencyTable, seats: int, longest: int, tokens: int) -> None:
        """`seats` bounds the sequences in a step, `longest` each prompt, `tokens` all prompts together."""
        decode = table[DECODE]
        slope = decode.slope
        self.slope = max(slope, 0.0)
        """Seconds of a step per token of context in it."""
        self.sequences = np.arange(1, seats + 1)
        base = np.array([decode.predict(Shape(batch)) for batch in range(1, seats + 1)])
        base += min(slope, 0.0) * longest * self.sequences
        self.base = np.maximum(np.minimum.accumulate(base[::-1])[::-1], 0.0)
        """Seconds of a decode step before its context, for b sequences (index b − 1) or more."""
        self.work, self.prefill = _least_prefill(table[PREFILL], longest, tokens + seats)
        """Corners of the seconds of a step by its tokens, where it does more than decode; linear between them."""
        self.per_token = float((self.prefill / self.work).min())

    def alone(self, length: int) -> float:
        """Seconds before a prompt of this length can be through: in one step, or in several pieces."""
        own = float(np.interp(length, self.work, self.prefill))
        whole = min(own, float(self.prefill[self.work >= length].min(initial=math.inf)))
        return min(whole, max(length * self.per_token, 2 * float(self.prefill.min())))

    def prices(self, share: float, time: float, longest: int) -> Prices:
        """Prices such that no step costs less than all that it serves is charged.

        A step of b decodes and w prompt tokens takes C = max(base(b), prefill(b + w)) and `slope` per token of
        context. Charging each request `time` for every second it spends in steps, a step's worth is
        C·(1 + time·b) + Σ slope·context·(1 + time·b); what remains after `prompt`·w is split over the b decodes.
        """
        prompt = share * self.per_token
        worth = 1.0 + time * self.sequences
        rest = self.base * worth  # no prompt tokens
        for batch in self.sequences:
            work, seconds = self._corners(float(self.base[batch - 1]))
            # One prompt token is the least that rides along; it is no corner, and may be the cheapest of all.
            one_rides = np.interp(batch + 1, self.work, self.prefill)
            work, seconds = np.append(work, batch + 1), np.append(seconds, one_rides)
            more = work >= batch + 1
            ridden = np.maximum(seconds, self.base[batch - 1])[more] * worth[batch - 1] - prompt * (work[more] - batch)
            rest[batch - 1] = min(rest[batch - 1], ridden.min(initial=math.inf))
        context = np.arange(longest + 1)
        each = (rest / self.sequences)[:, None] + self.slope * worth[:, None] * context
        return Prices(prompt, each.min(axis=0), time)

    def _corners(self, level: float) -> tuple[Floats, Floats]:
        """The corners of max(prefill, level): those of prefill, and where it crosses the level."""
        work, seconds = self.work, self.prefill
        crosses = (seconds[:-1] - level) * (seconds[1:] - level) < 0
        rise = np.where(crosses, seconds[1:] - seconds[:-1], 1.0)
        where = work[:-1] + (level - seconds[:-1]) / rise * (work[1:] - work[:-1])
        return np.concatenate([work, where[crosses]]), np.concatenate([seconds, np.full(crosses.sum(), level)])


def _least_prefill(model: object, longest: int, tokens: int) -> tuple[Floats, Floats]:
    """`(work, seconds)`: corners of the least seconds of a step of w = 1…tokens in pieces of at most `longest`.

    At whole numbers of tokens between two corners the least seconds lie on the line between them.
    """
    if not isinstance(model, TokensLatency):
        raise ValueError(f"the bound needs a prefill of kind 'tokens', got {type(model).__name__}")
    longest_piece = 1 if model.coef[2] >= 0 else longest
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
    requests: Sequence[Request], table: LatencyTable, max_batch: int | None
) -> tuple[NDArray[np.bool_], list[Demand]]:
    """Which requests could make it at all, and the demands of all; `requests` come in order of arrival."""
    arrivals = np.array([request.arrival for request in requests])
    due = [_deadlines(request) for request in requests]
    ends = np.maximum([times[-1] for times in due], arrivals)
    seats = max(Seats(arrivals, ends, [request.width for request in requests]).most, 1)
    seats = seats if max_batch is None else min(seats, max_batch)
    longest = max(request.size + len(times) for request, times in zip(requests, due, strict=True))
    costs = StepCosts(table, seats, longest, sum(request.size * request.width for request in requests))
    eligible = np.array([_is_feasible(request, times, costs) for request, times in zip(requests, due, strict=True)])
    until = moments(np.concatenate([[times[0] for times in due], [times[-1] for times in due]]))
    demands = list(_demands(requests, due, until, costs, longest)) if len(until) else []
    return eligible, demands


def _deadlines(request: Request) -> Floats:
    """When each of its tokens is due, at the latest: a later token's deadline counts for the earlier ones too."""
    times = np.array([request.deadlines.at(unit) for unit in range(1, request.max_units + 1)])
    latest: Floats = np.minimum.accumulate(times[::-1])[::-1]
    return latest


def _is_feasible(request: Request, due: Floats, costs: StepCosts) -> bool:
    """Whether it could make it with the whole device to itself, or beside others that make its steps no slower."""
    steps = np.arange(len(due))
    context = costs.slope * (steps * request.size + steps * (steps + 1) / 2)
    earliest = request.arrival + costs.alone(request.size) + costs.base[0] * steps + context
    return bool((earliest <= due + ROUNDING).all())


def _demands(
    requests: Sequence[Request], due: Sequence[Floats], until: Floats, costs: StepCosts, longest: int
) -> Iterator[Demand]:
    tokens = np.array([np.searchsorted(times, until, side="right") for times in due])
    steps = np.maximum(tokens - 1, 0)
    budget = np.array(
        [
            times[done] - request.arrival - costs.alone(request.size)
            for request, times, done in zip(requests, due, steps, strict=True)
        ]
    )
    budget = np.where(steps > 0, np.maximum(budget, 0.0), 0.0) + ROUNDING
    size = np.array([request.size for request in requests])[:, None]
    width = np.array([request.width for request in requests])[:, None]
    for share in PREFILL_SHARES:
        for time in PACES:
            prices = costs.prices(share, time, longest)
            # Decode visit k (from 1) attends to the prompt and k tokens.
            paid = np.concatenate([[0.0], np.cumsum(prices.decode)])
            work = prices.prompt * size + paid[size + 1 + steps] - paid[size + 1] - prices.time * budget
            yield Demand(until, np.where(tokens > 0, width * np.maximum(work, 0.0), 0.0))
