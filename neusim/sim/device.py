"""What is simulated: how a device's modules are laid out on processes, and what its memory holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

from neusim.estimating.roofline import BYTES
from neustream.catalog.accelerators import ACCELERATORS
from neustream.catalog.llms import known_shape
from neustream.cost import gpu_demand
from neustream.policies import POLICIES, is_llm
from neustream.route import LOOP_MODULE
from neustream.tables import KV_BLOCK, STEP_TOKENS, LatencyTable

Layout = Literal["process", "interleaved"]
Contention = Literal["table", "full", "none"]
Groups = tuple[tuple[str, ...], ...]
"""The modules of each process, in pipeline order."""

ARTIFACT_HANDOVER = 0.016
"""Seconds that a request takes to the next process: the medians of four logged runs are 11, 16, 16 and 20 ms."""
ARTIFACT_MARGIN = 0.035
"""Seconds that the artifact's rejection rule allows for a hand-over: a constant, on the safe side of what was logged.

Its rule for Stable Diffusion, the pipeline with a text encoder, allows none.
"""
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

    Its modules are laid out on processes, each with its own step loop; they overlap and share the GPU. A language
    model's device always has one process. What a table does not know of is said here. Raises ValueError for values
    out of range.
    """

    layout: Layout = "interleaved"
    """ "process": one for what stands before the loop, one for the loop, one for what is behind it, as the artifact
    ran. "interleaved": one for all modules."""
    groups: Groups | None = None
    """The modules of each process where it is another division than the layout's; "process" only."""
    handover: float = ARTIFACT_HANDOVER
    """Seconds from one process to the next."""
    margin: float | None = None
    """Seconds that the rule of `neustream` allows for a hand-over when it rejects; None: the hand-over itself."""
    overhead: float = 0.0
    """Seconds that a step costs outside its module (scheduling, preparing inputs). The GPU is free meanwhile."""
    jitter: float = 0.0
    """Relative standard deviation of a step's seconds."""
    slowness: Slowness | float = 1.0
    """How many times as long as the table says the steps take: always, or over time."""
    contention: Contention = "table"
    """What steps that overlap cost each other. "table": by the shares of the GPU that the table lets one infer.
    "full": each step keeps the GPU busy all the time. "none": they do not slow each other down."""
    kv_blocks: int | None = None
    """Blocks of `block_size` tokens; None: unbounded memory."""
    block_size: int = KV_BLOCK
    watermark: float = WATERMARK
    prefix_cache: bool = True
    """Whether prompts that begin alike share blocks, where the workload says which do."""
    can_split: bool = True
    """Whether pieces of prompts may ride with decodes, as in today's vLLM; False: as in vLLM 0.5.4 with the patches."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = STEP_TOKENS

    def __post_init__(self) -> None:
        if self.layout not in ("process", "interleaved"):
            raise ValueError(f"layout must be process or interleaved, got {self.layout!r}")
        if self.contention not in ("table", "full", "none"):
            raise ValueError(f"contention must be table, full or none, got {self.contention!r}")
        if self.groups is not None and self.layout != "process":
            raise ValueError("groups of modules need the layout process")
        for name in ("handover", "margin", "overhead", "jitter"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0, got {value:g}")
        if not isinstance(self.slowness, Slowness) and not (math.isfinite(self.slowness) and self.slowness > 0):
            raise ValueError(f"slowness must be above 0, got {self.slowness:g}")
        if self.jitter >= 1:
            raise ValueError(f"jitter is relative to the step and must be below 1, got {self.jitter:g}")
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kv_blocks is not None and self.kv_blocks < 1:
            raise ValueError(f"kv_blocks must be at least 1, got {self.kv_blocks}")
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark must be at least 0 and below 1, got {self.watermark:g}")

    def processes(self, table: LatencyTable) -> Groups:
        """The modules of each process, in pipeline order. Raises ValueError for groups that are not the table's."""
        modules = tuple(table.modules)
        if self.layout == "interleaved" or is_llm(table):
            return (modules,)
        groups = self.groups or _around_the_loop(modules)
        if sorted(module for group in groups for module in group) != sorted(modules):
            raise ValueError(f"groups must name each of {', '.join(modules)} once, got {groups!r}")
        return groups

    def slowed(self, now: float) -> float:
        """How many times as long as its table says a step takes that starts at `now`."""
        return self.slowness.at(now) if isinstance(self.slowness, Slowness) else self.slowness

    def under(self, policy: str) -> Device:
        """This device as that policy uses it: whole requests run in one process, without hand-overs."""
        entry = POLICIES.get(policy)
        if entry is None or not entry.whole_requests or self.layout == "interleaved":
            return self
        return replace(self, layout="interleaved", groups=None)


def _around_the_loop(modules: tuple[str, ...]) -> Groups:
    """What stands before the loop, the loop, what is behind it; each module by itself where there is no loop."""
    if LOOP_MODULE not in modules:
        return tuple((module,) for module in modules)
    at = modules.index(LOOP_MODULE)
    return tuple(group for group in (modules[:at], (LOOP_MODULE,), modules[at + 1 :]) if group)


def default_device(table: LatencyTable, **options: Any) -> Device:
    """The device that a table's model is usually served on; `options` are `Device`'s and win.

    A pipeline gets the processes of the artifact, and the margin of its rejection rule unless `options` name a
    hand-over. A language model gets the KV blocks that its table names, or else those that vLLM would find on that
    device; where neither is known its memory is unbounded.
    """
    if is_llm(table):
        return Device(**{"kv_blocks": kv_blocks(table), "block_size": table.kv_block_size} | options)
    margin = ARTIFACT_MARGIN if table.modules and next(iter(table.modules)) == LOOP_MODULE else 0.0
    return Device(**{"layout": "process", "margin": None if "handover" in options else margin} | options)


def kv_blocks(table: LatencyTable) -> int | None:
    """KV blocks of the table's size on its device(s): what vLLM leaves of the memory beside the weights."""
    if table.kv_blocks is not None:
        return table.kv_blocks
    shape = known_shape(table.model)
    accelerator = ACCELERATORS.get(table.device)
    width = BYTES.get(str(table.info.get("dtype", "float16")))
    if shape is None or accelerator is None or width is None:
        return None
    memory = accelerator.memory_bytes * table.tensor_parallel
    return shape.kv_blocks(memory, width, table.kv_block_size) or None


def demand_law(table: LatencyTable, contention: Contention) -> Callable[[str, int], float]:
    """The share of its time in which a step of a module and batch size keeps the GPU busy, by the law of contention."""
    if contention == "table":
        return lru_cache(maxsize=None)(partial(gpu_demand, table))
    share = 1.0 if contention == "full" else 0.0
    return lambda module, batch: share
