"""Those who are bound for one loop at a step boundary, and what each of them still needs."""

from __future__ import annotations

from neustream.policies.slack.fit import Needs, Places
from neustream.request import Request


class Candidates:
    """The requests that a loop may serve, stream by stream; `places` count them in the order in which they came.

    A policy makes one for every plan and fills its lists by hand: a call a request would cost more than all else.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.steps: list[int] = []
        """Visits of the loop that are left."""
        self.margins: list[float] = []
        """Seconds until the last of them must be over."""
        self.tails: list[float] = []
        """Seconds that the other modules take from the loop."""
        self.visits: list[int] = []
        """Visits of the loop in all."""
        self.starts: dict[str, int] = {}
        """The first place of each module's stream, in the order in which the streams were gone through."""

    def needs(self) -> Needs:
        """As arrays."""
        return Needs.made(self.steps, self.margins, self.tails)

    def of_module(self, places: Places, module: str) -> Places:
        """Those of `places` that wait in front of `module`, in the same order."""
        if module not in self.starts:
            return places[:0]
        if len(self.starts) == 1:
            return places
        names = list(self.starts)
        following = names.index(module) + 1
        end = self.starts[names[following]] if following < len(names) else len(self.requests)
        return places[(places >= self.starts[module]) & (places < end)]

    def urgencies(self, places: Places) -> list[tuple[float, Request]]:
        """Their margins and the requests."""
        return [(self.margins[place], self.requests[place]) for place in places.tolist()]

    def at(self, places: Places) -> tuple[Request, ...]:
        """The requests at these places."""
        return tuple([self.requests[place] for place in places.tolist()])
