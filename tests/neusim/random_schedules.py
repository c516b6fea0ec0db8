"""Policies that schedule at random, and deadlines that such a schedule just meets: whatever bounds must let it pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from neusim.sim import Device
from neusim.sim.driver import SimulatedDriver
from neustream import Deadlines, LatencyTable, Limits, Piece, Request, StepPlan, Streams
from neustream.capacity import largest_batch
from neustream.driver import Callbacks
from neustream.plan import IDLE
from neustream.policies import is_llm
from neustream.route import DECODE, PREFILL
from neustream.slo import NO_DEADLINES

Kind = Literal["first", "pace", "end", "first and end", "all", "none"]
KINDS: tuple[Kind, ...] = ("first", "pace", "end", "first and end", "all", "none")
"""What the SLO of a text states: everything that AbsoluteSlo takes, in all combinations that it takes."""


class AnyBatch:
    """Some module, some of those who wait for it; never more than may be planned."""

    def __init__(self, table: LatencyTable, chance: random.Random) -> None:
        self.table = table
        self.chance = chance

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        module = self.chance.choice([module for module in streams.modules if streams[module]])
        waiting = list(streams[module])
        most = min(len(waiting), largest_batch(self.table, module))
        return StepPlan(module, tuple(self.chance.sample(waiting, self.chance.randint(1, most))))


class AnyStep:
    """Some prefill, some decode, or some of both, with texts that lose their memory now and then."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        chance, running = self.chance, list(streams[DECODE])
        lost = tuple(request for request in running if chance.random() < 0.1)
        running = [request for request in running if request not in lost]
        batch = chance.sample(running, chance.randint(0, min(len(running), limits.max_resident)))
        growth = sum((request.context - 1) % limits.block_size == 0 for request in running)
        free = limits.free_blocks - growth
        pieces: list[Piece] = []
        for request in chance.sample(list(streams[PREFILL]), len(streams[PREFILL])):
            needed = 0 if request.processed else limits.blocks(request.pending)
            if chance.random() < 0.7 and needed <= free:
                free -= needed
                work = request.pending if chance.random() < 0.5 else chance.randint(1, request.pending)
                pieces.append(Piece(request, work))
        whole = [request for request, work in pieces if not request.processed and work == request.pending]
        if len(whole) == len(pieces) > 0 and chance.random() < 0.5:
            return StepPlan(PREFILL, tuple(whole), preempted=lost)
        if batch or pieces:
            return StepPlan(DECODE, tuple(batch), pieces=tuple(pieces), preempted=lost)
        if running:
            return StepPlan(DECODE, tuple(running), preempted=lost)
        return StepPlan(wake=now + 1.0, preempted=lost) if len(streams) or lost else IDLE


def witnessed(
    table: LatencyTable, requests: Sequence[Request], device: Device, chance: random.Random, kinds: Sequence[Kind]
) -> list[Request]:
    """The same requests, with deadlines of these kinds that a random schedule on the device just meets."""
    times: dict[str, list[float]] = {request.request_id: [] for request in requests}
    ended: list[Request] = []

    def fresh() -> Iterator[Request]:
        for r in sorted(requests, key=lambda request: request.arrival):
            yield Timed(r.request_id, r.arrival, NO_DEADLINES, r.route, r.size, times=times[r.request_id])

    def policy() -> AnyBatch | AnyStep:
        return AnyStep(chance) if is_llm(table) else AnyBatch(table, chance)

    SimulatedDriver(table, device, policy).run(fresh(), Callbacks(ended.append))
    assert all(request.outcome == "met" for request in ended), ended
    return [
        Request(r.request_id, r.arrival, just_met(kind, times[r.request_id]), r.route, r.size)
        for r, kind in zip(requests, kinds, strict=True)
    ]


class Timed(Request):
    """A request that notes when its units come out."""

    __slots__ = ("times",)

    def __init__(self, *args: object, times: list[float]) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.times = times

    def deliver(self, at: float) -> None:
        super().deliver(at)
        self.times.append(at)


def just_met(kind: Kind, times: Sequence[float]) -> Deadlines:
    """The tightest deadlines of this kind for units that came out at these times."""
    first, last = times[0], times[-1]
    pace = max(((at - first) / k for k, at in enumerate(times[1:], 1)), default=0.0)
    forms: dict[Kind, Callable[[], Deadlines]] = {
        "first": lambda: Deadlines(first),
        "pace": lambda: Deadlines(first, pace),
        "end": lambda: Deadlines(last=last),
        "first and end": lambda: Deadlines(first, last=last),
        "all": lambda: Deadlines(first, pace, last=last),
        "none": lambda: NO_DEADLINES,
    }
    return forms[kind]()
