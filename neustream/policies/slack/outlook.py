"""What the requests of a process still need, and by when: the arrays from which slack decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, getitem
from typing import NamedTuple

import numpy as np

from neustream.plan import Limits, Rejection
from neustream.policies.base import PolicyContext
from neustream.policies.slack.candidates import Candidates
from neustream.policies.slack.fit import LEAST_RESERVE, FluidFit, Needs
from neustream.policies.slack.schedules import Floats
from neustream.policies.slack.ways import Way, Ways
from neustream.request import Request
from neustream.streams import Streams
from neustream.tables import LatencyTable

DUE, LEFT = attrgetter("next_deadline"), attrgetter("left")
AT, NUMBER = attrgetter("at"), attrgetter("number")

LITTLE, MUCH = 0.25, 0.75
"""Seconds taken from the loop for each second of visits outside it: of the reserve nothing is kept up to the first
beyond the least, and all of it from the second on."""


class Forecast(NamedTuple):
    """What a way means at one moment, in seconds."""

    lead: float
    """Hand-overs from one process to another."""
    alone: float
    """Visits outside the loop, alone and at the table's speed."""
    step: float
    """A step of the loop alone; 0 where no loop is ahead."""
    leniency: float
    """By how much shorter than the table's a step may be: whoever is late even so is hopeless."""
    slowness: float
    """Measured over predicted seconds of the loop's steps."""
    outside: float
    """All that is outside the loop, on this device as it is."""
    tail: float
    """What of that is taken from the loop, at the table's speed of the loop."""
    reserve: float
    """The share of the slack that is not planned with."""


class Survey(NamedTuple):
    """Who waits at one moment."""

    rejected: tuple[Rejection, ...]
    """The hopeless."""
    last: Candidates
    """Those with no loop ahead. Their margins are the seconds until they must run."""
    loops: dict[str, Candidates]
    """Those with a loop ahead, by that loop."""


FitOf = Callable[[str, Limits], FluidFit]
"""The schedules of a module, by the batch that a device can hold."""


class Outlook:
    """Surveys the streams of a process. `seconds` are a step's by module and batch size."""

    def __init__(
        self,
        table: LatencyTable,
        seconds: Mapping[str, Sequence[float]],
        context: PolicyContext,
        fit_of: FitOf,
    ) -> None:
        self._seconds = seconds
        self._handover = context.handover
        self._ways = Ways(table, seconds, context.processes)
        self._fit_of = fit_of

    def survey(self, now: float, streams: Streams, limits: Limits) -> Survey:
        """The hopeless and the others at time `now`, with what each needs."""
        requests: list[Request] = []
        spans = {}
        for module in streams.modules:
            start = len(requests)
            requests.extend(streams[module])
            if len(requests) > start:
                spans[module] = start, len(requests)
        where = self._ways.places(requests)
        count = len(requests)
        left_seconds = np.fromiter(map(DUE, requests), np.float64, count) - now
        steps = np.fromiter(map(getitem, map(LEFT, requests), map(AT, where)), np.float64, count)
        numbers = list(map(NUMBER, where))
        ways = {number: where[numbers.index(number)].way for number in dict.fromkeys(numbers)}
        lead, alone, step, leniency, slowness, outside, tail, reserve = self._forecasts(ways, numbers, streams, limits)
        loop_alone = steps * step
        least = alone + loop_alone * leniency
        hopeless = (left_seconds - lead < least).nonzero()[0]
        # Margin and tail are in the table's seconds of the loop: a slower device is like a tighter margin.
        margins = (left_seconds - lead - outside) / slowness
        kept_back = margins * (1.0 - reserve) + loop_alone * reserve
        everybody = Candidates(
            requests, where, Needs(steps, np.minimum(margins, kept_back), np.zeros(count) + tail), spans
        )
        rejected = []
        if len(hopeless):
            by_now, least = (left_seconds[hopeless]).tolist(), np.broadcast_to(least, steps.shape)[hopeless].tolist()
            for request, due, needed in zip(everybody.at(hopeless), by_now, least, strict=True):
                rejected.append(Rejection(request, f"due in {due:.3f} s, alone it takes {needed:.3f} s"))
            is_kept = np.ones(len(requests), dtype=np.bool_)
            is_kept[hopeless] = False
            everybody = everybody.only(is_kept.nonzero()[0])
        return Survey(tuple(rejected), *_by_loop(everybody, ways))

    def _forecasts(
        self, ways: Mapping[int, Way], numbers: Sequence[int], streams: Streams, limits: Limits
    ) -> Sequence[Floats | float]:
        """The fields of `Forecast`, each a number for all requests or an array of theirs."""
        forecasts = [self._forecast(way, streams, limits) for way in ways.values()]
        if len(forecasts) == 1:
            return forecasts[0]
        rows = {number: row for row, number in enumerate(ways)}
        which = np.array([rows[number] for number in numbers], dtype=np.intp)
        return list(np.array(forecasts, dtype=np.float64).reshape(-1, len(Forecast._fields))[which].T)

    def _forecast(self, way: Way, streams: Streams, limits: Limits) -> Forecast:
        """What a way means at this moment, on this device as it is."""
        lead = way.handovers * self._handover
        outside, taken, undisturbed = self._ways.outside(way, streams, limits)
        if way.loop is None:
            return Forecast(lead, way.after, 0.0, 1.0, 1.0, outside, 0.0, 0.0)
        slowness = limits.drift.get(way.loop, 1.0)
        step = self._seconds[way.loop][1]
        leniency = min(slowness, 1.0)  # a device that seems slow may recover: only what the table rules out is hopeless
        # The reserve is room for those who come next: for what their visits outside the loop take from it.
        disturbance = taken / undisturbed if undisturbed > 0.0 else 0.0
        share = min(max(disturbance - LITTLE, 0.0) / (MUCH - LITTLE), 1.0)
        reserve = LEAST_RESERVE + share * (self._fit_of(way.loop, limits).reserve - LEAST_RESERVE)
        alone = way.before + way.after
        return Forecast(lead, alone, step, leniency, slowness, outside, taken / slowness, reserve)


def _by_loop(everybody: Candidates, ways: Mapping[int, Way]) -> tuple[Candidates, dict[str, Candidates]]:
    """`(those with no loop ahead, the others by their loop)`."""
    loops = {way.loop for way in ways.values()}
    nobody = everybody.only(np.arange(0))
    if not everybody.requests or loops == {None}:
        return everybody, {}
    if len(loops) == 1:
        return nobody, {loop: everybody for loop in loops if loop is not None}
    names = [place.way.loop for place in everybody.where]
    parts = {loop: [i for i, name in enumerate(names) if name == loop] for loop in dict.fromkeys(names)}
    split = {loop: everybody.only(np.array(places, dtype=np.intp)) for loop, places in parts.items()}
    return split.pop(None, nobody), {loop: part for loop, part in split.items() if loop is not None}
