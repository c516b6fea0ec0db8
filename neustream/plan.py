"""What a policy decides (`StepPlan`) and what it may know of the device (`Limits`). Frozen data, both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from neustream.output_lengths import LengthHistory
from neustream.request import Request

UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that the policy gives up, and why."""

    request: Request
    reason: str


class Piece(NamedTuple):
    """A part of a request's first stage that rides in the same pass as the batch (chunked prefill)."""

    request: Request
    work: int
    """Units of its input (tokens) that this step processes; at least 1."""


MIXED = "mixed"
"""The kind of a step whose batch has pieces of another module riding along."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: `module` runs `batch`, one whole visit each; `pieces` ride along; `rejected` are given up.

    Pieces are in service order. All but the last complete their request's first stage. With nothing to run,
    `module` is None; `wake` then says when the policy wants to be asked again at the latest, in seconds on the
    driver's clock (None: when something arrives).

    `preempted` are resident requests that are no members of the step. Before the step gets its memory, and after
    the rejections, the driver takes their seats and memory and sends them back to their first stage, in the order
    given: each goes to the front of that stream, as one that the driver itself preempts does (`loop.preempt`). The
    step may count on the memory of all of them. A plan may preempt without running anything.

    Raises ValueError where `module` and the members disagree.
    """

    module: str | None = None
    batch: tuple[Request, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    pieces: tuple[Piece, ...] = ()
    wake: float | None = None
    preempted: tuple[Request, ...] = ()

    def __post_init__(self) -> None:
        if (self.module is None) != (not self.batch and not self.pieces):
            raise ValueError(f"a plan has a module if and only if it has a batch: {self.module!r}, {self.batch!r}")

    @property
    def members(self) -> tuple[Request, ...]:
        """Every request that the step works on: the batch, then those of the pieces."""
        return (*self.batch, *(piece.request for piece in self.pieces)) if self.pieces else self.batch

    @property
    def kind(self) -> str | None:
        """What history and records file the step under: its module, or `mixed` where pieces ride with a batch."""
        return MIXED if self.batch and self.pieces else self.module


IDLE = StepPlan()


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device holds and can do at this step boundary.

    Frozen, but for what its mappings hold: `last_seconds`, `drift`, `beside` and `lengths` are the driver's own and go
    on changing with the next step. A policy reads them while it plans, and keeps none.
    """

    max_resident: int = UNLIMITED
    """Seats (sequences) that may be past their first stage at once."""
    max_work: int = UNLIMITED
    """Units of work (tokens) in one step."""
    free_blocks: int = UNLIMITED
    """Blocks of memory for context that nobody holds."""
    block_size: int = 1
    """Units of context in a block."""
    spare_blocks: int = 0
    """Blocks to keep free, so that running requests can grow (vLLM's watermark)."""
    total_blocks: int = UNLIMITED
    """All blocks of the device."""
    max_batch: Mapping[str, int] = field(default_factory=dict)
    """Requests in one step of a module, where memory bounds it."""
    can_split: bool = False
    """Whether pieces of a first stage may ride with a batch (the simulator and today's vLLM; 0.5.4 cannot)."""
    num_under_way: int = 0
    """Steps that are planned and have not ended. Their requests have moved; their units are still to come."""
    last_seconds: Mapping[str, float] = field(default_factory=dict)
    """How long the last step of each kind took, where one has run. `StepHistory` fills it, as the next three."""
    drift: Mapping[str, float] = field(default_factory=dict)
    """Measured over predicted seconds of each kind's recent steps, where that is known."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """As `drift`, of steps that shared the device with a step of another process."""
    lengths: Mapping[str, LengthHistory] = field(default_factory=dict)
    """Lengths of the outputs that have finished, by SLO class."""

    def blocks(self, units: int) -> int:
        """Blocks that a context of `units` occupies."""
        return -(-units // self.block_size)
