"""What a policy decides (`StepPlan`) and what it may know of the device (`Limits`). Frozen data, both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from neustream.request import Request

UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that the policy gives up, and why."""

    request: Request
    reason: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a request's input, processed in the same step as the batch (chunked prefill)."""

    request: Request
    work: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: `module` runs `batch` (and `chunks` ride along); `rejected` are given up.

    With nothing to run, `module` is None; `wake` then says when the policy wants to be asked again at the
    latest (None: when something arrives).
    """

    module: str | None = None
    batch: tuple[Request, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    wake: float | None = None

    def __post_init__(self) -> None:
        if (self.module is None) != (not self.batch and not self.chunks):
            raise ValueError(f"a plan has a module if and only if it has a batch: {self.module!r}, {self.batch!r}")


IDLE = StepPlan()


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device can hold at this step boundary."""

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
    last_seconds: Mapping[str, float] = field(default_factory=dict)
    """How long the last step of each module took, where one has run."""
    drift: Mapping[str, float] = field(default_factory=dict)
    """Measured over predicted seconds of each module's recent steps, where that is known (`DriftMeter`)."""

    def blocks(self, units: int) -> int:
        """Blocks that a context of `units` occupies."""
        return -(-units // self.block_size)
