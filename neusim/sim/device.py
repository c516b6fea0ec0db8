"""What is simulated: how a device's modules are laid out on processes, and what its memory holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neusim.estimating.roofline import BYTES
from neustream.catalog.accelerators import ACCELERATORS
from neustream.catalog.llms import KV_BLOCK, known_shape
from neustream.policies import is_llm
from neustream.tables import LatencyTable

Layout = Literal["process", "interleaved"]

ARTIFACT_HANDOVER = 0.035
"""Seconds that a request takes to reach the next module's process."""
WATERMARK = 0.01
"""Share of the KV blocks that a prefill leaves free, as in vLLM."""


@dataclass(frozen=True, slots=True)
class Slowness:
    """How many times as long as its table says a device's steps take, over time, as a real one's was measured."""

    window: float
    """Seconds that one factor is for."""
    factors: Mapping[int, float]
    """By number of the window, 0 beginning at time 0."""
    otherwise: float = 1.0
    """The factor of windows in which nothing was measured."""

    def at(self, now: float) -> float:
        """The factor of a step that starts at `now`."""
        return self.factors.get(int(now // self.window), self.otherwise)


@dataclass(frozen=True, slots=True)
class Device:
    """A device to simulate on.

    `layout` "process": each module in a process of its own, with its own step loop over its own stream; the
    modules of one pipeline overlap and share the GPU. "interleaved": one step loop over all modules.
    `handover` is the time from one process to the next, `overhead` what a step costs outside its module
    (scheduling, preparing inputs), `jitter` the relative standard deviation of a step's seconds, `slowness` how
    they differ from the table's over time, all of which a table does not know. A language model's device is
    always interleaved; `kv_blocks` (of `block_size` tokens) bounds its memory, None leaves it unbounded.
    """

    layout: Layout = "interleaved"
    handover: float = ARTIFACT_HANDOVER
    overhead: float = 0.0
    jitter: float = 0.0
    slowness: Slowness | None = None
    kv_blocks: int | None = None
    block_size: int = KV_BLOCK
    watermark: float = WATERMARK
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.layout not in ("process", "interleaved"):
            raise ValueError(f"layout must be process or interleaved, got {self.layout!r}")
        for name in ("handover", "overhead", "jitter"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0, got {value:g}")
        if self.jitter >= 1:
            raise ValueError(f"jitter is relative to the step and must be below 1, got {self.jitter:g}")
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kv_blocks is not None and self.kv_blocks < 1:
            raise ValueError(f"kv_blocks must be at least 1, got {self.kv_blocks}")
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark must be at least 0 and below 1, got {self.watermark:g}")

    def processes(self, table: LatencyTable) -> list[tuple[str, ...]]:
        """The modules of each process, in pipeline order."""
        modules = tuple(table.modules)
        if self.layout == "process" and not is_llm(table):
            return [(module,) for module in modules]
        return [modules]


def default_device(table: LatencyTable, **options: Any) -> Device:
    """The device that a table's model is usually served on; `options` are `Device`'s and win.

    A pipeline gets a process per module. A language model gets the KV blocks that its table names, or else
    those that vLLM would find on that device; where neither is known its memory is unbounded.
    """
    if not is_llm(table):
        return Device(**{"layout": "process"} | options)
    return Device(**{"kv_blocks": kv_blocks(table)} | options)


def kv_blocks(table: LatencyTable) -> int | None:
    """KV blocks of 16 tokens on the table's device(s): what vLLM leaves of the memory beside the weights."""
    known = table.info.get("kv_blocks")
    if isinstance(known, int) and known > 0:
        return known
    shape = known_shape(table.model)
    accelerator = ACCELERATORS.get(table.device)
    width = BYTES.get(str(table.info.get("dtype", "float16")))
    if shape is None or accelerator is None or width is None:
        return None
    devices = int(table.info.get("tensor_parallel", 1))
    return shape.kv_blocks(accelerator.memory_bytes * devices, width) or None
