"""Requests at a step boundary, what each of them still needs, and which module they wait for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from neustream.policies.slack.fit import Needs, Places
from neustream.policies.slack.schedules import Floats
from neustream.policies.slack.ways import Place
from neustream.request import Request


@dataclass(frozen=True, slots=True)
class Candidates:
    """Requests, stream by stream; places count them in the order in which they came."""

    requests: list[Request]
    where: list[Place]
    """What lies ahead of each."""
    needs: Needs
    """What each needs of the loop that is ahead of it."""
    spans: Mapping[str, tuple[int, int]]
    """By module, in the order of the streams: the places of those who wait for it, from and to."""

    def visits(self) -> Floats:
        """Visits of the loop in all, of each."""
        return np.array([place.visits for place in self.where], dtype=np.float64)

    def of_module(self, places: Places, module: str) -> Places:
        """Those of `places` that wait in front of `module`, in the same order."""
        start, end = self.spans.get(module, (0, 0))
        if end - start == len(self.requests):
            return places
        return places[(places >= start) & (places < end)]

    def at(self, places: Places) -> tuple[Request, ...]:
        """The requests at these places."""
        requests = self.requests
        return tuple([requests[place] for place in places.tolist()])

    def only(self, places: Places) -> Candidates:
        """Those at these places, which are in order."""
        chosen = places.tolist()
        spans = {}
        for module, (start, end) in self.spans.items():
            first, last = places.searchsorted((start, end)).tolist()
            if last > first:
                spans[module] = first, last
        requests, where = self.requests, self.where
        return Candidates([requests[i] for i in chosen], [where[i] for i in chosen], self.needs.of(places), spans)
