"""Whether a model fits this machine, decided before any of it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from neustream.catalog.llms import LlmShape
from neustream.catalog.shapes import MEMORY_SHARE
from neustream.tables import KV_BLOCK

GIB = 1 << 30
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DEFAULT_LAYERS = (2, 4)
MIN_CACHE_TOKENS = 8192
"""Context tokens that must fit beside the weights: fewer, and only the smallest batches could be measured."""
WORKSPACE_BYTES = 1.5 * GIB
"""Code, activations, logits of a full batch."""
SHARE = 0.85
"""Of what is free, how much is taken at most."""


class TooLarge(ValueError):
    """The model does not fit even by layers; one line with sizes."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """At which depths a model is measured, and how large its KV cache is."""

    layers: tuple[int, int] | None
    """Two depths, or None for the whole model."""
    depth: int
    """Layers that are loaded."""
    cache_bytes: int
    """Of the KV cache, a whole number of GiB."""
    reason: str
    """One line for the user."""


def plan_memory(
    model: LlmShape, dtype: str, free_bytes: float, *, layers: tuple[int, int] | None, cache_tokens: int
) -> MemoryPlan:
    """Choose between the whole model and two depths of it.

    The whole model, where its weights and a KV cache of MIN_CACHE_TOKENS fit in SHARE of `free_bytes`;
    `layers` forces the other. The cache gets what `cache_tokens` take, as far as there is room.
    Raises TooLarge where not even two depths fit.
    """
    item = ITEM_BYTES[dtype]
    room = SHARE * free_bytes - WORKSPACE_BYTES

    def weights(depth: int) -> int:
        return item * model.parameters(depth)

    def cache(depth: int, tokens: int) -> int:
        return max(-(-item * model.kv_elements(depth) * tokens // GIB), 1) * GIB

    def fits(depth: int) -> bool:
        return weights(depth) + cache(depth, MIN_CACHE_TOKENS) <= room

    whole = f"{size(weights(model.num_layers))} of weights in {dtype}"
    if layers is not None:
        depths: tuple[int, int] | None = layers
        reason = "by layers, as asked"
    elif fits(model.num_layers):
        depths, reason = None, f"{whole} fit the {size(free_bytes)} that are free: the whole model"
    else:
        depths, reason = DEFAULT_LAYERS, f"{whole} do not fit the {size(free_bytes)} that are free: by layers"
    depth = model.num_layers if depths is None else depths[1]
    if depths is not None:
        reason += f", {depths[0]} and {depths[1]} of {model.num_layers}"
    if not fits(depth):
        need = weights(depth) + cache(depth, MIN_CACHE_TOKENS) + WORKSPACE_BYTES
        raise TooLarge(
            f"{model.name}: {depth} layers in {dtype} need {size(need)}, and {size(SHARE * free_bytes)} can be taken"
        )
    spare = int((room - weights(depth)) // GIB) * GIB
    return MemoryPlan(depths, depth, max(min(cache(depth, cache_tokens), spare), GIB), reason)


class KvCache(NamedTuple):
    """The KV cache that an engine of the experiments has for a model on this machine."""

    blocks: int
    block_size: int
    source: str
    """How the number of blocks came about, for people."""

    @property
    def info(self) -> dict[str, Any]:
        """Fields of a latency table. Empty where there is no room for a block: such an engine serves nothing."""
        fields = {"kv_blocks": self.blocks, "kv_block_size": self.block_size, "kv_blocks_from": self.source}
        return fields if self.blocks > 0 else {}


def cpu_cache(model: LlmShape, dtype: str, gib: int, *, tp: int = 1, block_size: int = KV_BLOCK) -> KvCache:
    """The cache of the whole model on a CPU, where each of `tp` processes gives `gib` GiB to it."""
    block = ITEM_BYTES[dtype] * model.kv_elements(model.num_layers) * block_size
    return KvCache(gib * GIB * tp // block, block_size, f"VLLM_CPU_KVCACHE_SPACE of {gib} GiB")


def gpu_cache(model: LlmShape, dtype: str, total_bytes: float, *, block_size: int = KV_BLOCK) -> KvCache:
    """The cache of the whole model on GPUs with so much memory together: what its weights leave of vLLM's share."""
    blocks = model.kv_blocks(total_bytes, ITEM_BYTES[dtype], block_size)
    return KvCache(blocks, block_size, f"{MEMORY_SHARE:.0%} of {size(total_bytes)} less the weights")


def size(num_bytes: float) -> str:
    """In GiB, for people."""
    return f"{num_bytes / GIB:.1f} GiB"


def free_ram(read: Callable[[str], str] | None = None) -> int:
    """Bytes that new processes can take: what the kernel says is available, or less where a cgroup limits it.

    Files that the kernel may drop from its cache count as free in both.
    """
    get = read or (lambda path: Path(path).read_text())
    free = next(int(line.split()[1]) * 1024 for line in get("/proc/meminfo").splitlines() if "MemAvailable" in line)
    for folder, limit_file, usage_file, cached in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, usage = get(f"{folder}/{limit_file}").strip(), int(get(f"{folder}/{usage_file}"))
            fields = dict(line.split() for line in get(f"{folder}/memory.stat").splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdecimal():
            free = min(free, int(limit) - usage + int(fields.get(cached, 0)))
    return max(free, 0)
