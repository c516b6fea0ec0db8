"""What every step policy is, and the few sums that several of them need."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from neustream.latency import Shape
from neustream.plan import Limits, StepPlan
from neustream.request import Request
from neustream.streams import Streams


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """What a policy is told of where it runs, whether it needs it or not. Raises ValueError for values out of range."""

    slo_scale: float = 3.0
    """The SLO scale that a pipeline's batches are made for; at least 1."""
    handover: float = 0.0
    """Seconds that a request takes to the next module's process; 0 where one process runs all modules."""
    processes: tuple[tuple[str, ...], ...] = ()
    """The modules of each process, where several share the device; empty: each module where `handover` is above 0 has
    one of its own."""
    margin: float | None = None
    """Seconds that a rule of rejection allows for a hand-over, where that is a constant of the rule."""

    def __post_init__(self) -> None:
        for name, least in (("slo_scale", 1), ("handover", 0), ("margin", 0)):
            value = getattr(self, name)
            if name == "margin" and value is None:
                continue
            if not isinstance(value, int | float) or not value >= least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")


USUAL = PolicyContext()


def at_least(name: str, value: int, least: int) -> int:
    """A policy's option that is a whole number. Raises ValueError for what is none, or is below `least`."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def above(name: str, value: float, least: float) -> float:
    """A policy's option that is a number above `least`. Raises ValueError for what is none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least < value < math.inf:
        raise ValueError(f"{name} must be a number above {least:g}, got {value!r}")
    return value


def not_negative(name: str, value: float) -> float:
    """A policy's option that is a number of at least 0. Raises ValueError for what is none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    return value


def is_true(name: str, value: bool) -> bool:
    """A policy's option that is true or false. Raises ValueError for what is neither."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


class StepPolicy(Protocol):
    """Decides one step. Pure: the same arguments give the same plan, and nothing is changed."""

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        """The next step of a device whose streams and limits are these, at time `now` in seconds."""
        ...


def num_fitting(waiting: Iterable[Request], num_running: int, limits: Limits) -> int:
    """How many of these requests, taken from the front, the device has room for in one prefill.

    The first is let through however long its input is, provided that seats and memory allow it: otherwise an
    input longer than a step's work would wait for ever.
    """
    seats = limits.max_resident - num_running
    blocks = limits.free_blocks - limits.spare_blocks
    work = limits.max_work
    block_size = limits.block_size
    count = 0
    for request in waiting:
        pending = request.pending
        seats -= request.width
        work -= pending
        blocks -= -(-pending // block_size)
        if seats < 0 or blocks < 0 or (work < 0 and count):
            break
        count += 1
    return count


def seats_taken(requests: Iterable[Request]) -> int:
    """Seats of these requests."""
    return sum([request.width for request in requests])


def decode_shape(running: Iterable[Request]) -> Shape:
    """The shape of a step that runs these past their first stage: seats and context, which is all that counts then."""
    batch = context = 0
    for request in running:
        width = request.width
        batch += width
        context += (request.size + request.units + request.in_flight) * width
    return Shape(batch, 0, 0, context)
