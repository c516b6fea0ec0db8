"""The cost model of estimated tables: seconds of a list of kernels on a device with known peak rates.

A kernel takes the larger of its arithmetic and its memory traffic, each at a share of the peak that well-made
kernels reach (`Assumptions`); docs/estimates.md gives the reasons. Nothing is fitted to measured tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import NamedTuple

from neustream.catalog.accelerators import Accelerator

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
TILES = ((256, 128, 1.0), (128, 128, 1.0), (128, 64, 0.8), (64, 64, 0.6))
"""Output tiles (rows, columns) that a matrix product may be cut into, and the rate each reaches against the largest.

Smaller tiles load each operand more often; the shares follow NVIDIA's Matrix Multiplication Background guide.
"""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """The shares of the peak and the fixed costs that an estimate rests on; written into the table."""

    matmul_efficiency: float = 0.65
    memory_efficiency: float = 0.80
    link_efficiency: float = 0.70
    kernel_floor_s: float = 3e-6
    """The shortest time between the ends of two kernels on a busy device."""
    eager_host_s: float = 8e-6
    """Host time per kernel in eager PyTorch before its launch: Python modules, views, dispatcher."""
    eager_launch_s: float = 5e-6
    """Host time of the launch itself."""
    collective_s: float = 6e-6
    """Start of an all-reduce; each of its 2(n − 1) hops adds the link's latency."""
    llm_step_host_s: float = 3e-3
    """Scheduling, input preparation, sampling and output of one vLLM engine step, with the device idle."""
    llm_sequence_host_s: float = 30e-6
    """The same, per sequence in the step."""
    loop_step_host_s: float = 1e-3
    """Planning, synchronisation and bookkeeping of one step of the diffusion executor."""
    guidance_kernels: int = 40
    """Kernels of a denoising step outside the network: gathers, guidance, the scheduler's update."""

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class Kernel(NamedTuple):
    """One kernel: `flops` operations and `moved` bytes of memory traffic.

    A matrix product names the (rows, columns) of its output in `tile_grid`, `copies` of them in one launch.
    `extra` bytes are moved before or after the arithmetic, not under it (layout changes around convolutions).
    """

    flops: float = 0.0
    moved: float = 0.0
    rows: float = 0.0
    columns: float = 0.0
    copies: float = 1.0
    extra: float = 0.0


def product(rows: float, columns: float, inner: float, width: int, copies: float = 1.0) -> Kernel:
    """`copies` products of (rows × inner) by (inner × columns), `width` bytes per number."""
    moved = rows * inner + inner * columns + rows * columns
    return Kernel(2.0 * rows * columns * inner * copies, moved * width * copies, rows, columns, copies)


class Roofline:
    """Seconds of kernels on one device (of `tp` that share the work) in one number format."""

    def __init__(self, device: Accelerator, dtype: str, assumptions: Assumptions | None = None, *, tp: int = 1) -> None:
        self.device = device
        self.assume = assumptions or Assumptions()
        self.peak = device.flops(dtype) * self.assume.matmul_efficiency
        self.bandwidth = device.bytes_per_s * self.assume.memory_efficiency
        self.tp = tp

    def seconds(self, kernel: Kernel) -> float:
        """Seconds of one kernel on a device that has nothing else to do."""
        busy = max(self._arithmetic(kernel), kernel.moved / self.bandwidth) + kernel.extra / self.bandwidth
        return max(busy, self.assume.kernel_floor_s)

    def _arithmetic(self, kernel: Kernel) -> float:
        if not kernel.flops:
            return 0.0
        return kernel.flops / (self.peak * self._fill(kernel))

    def _fill(self, kernel: Kernel) -> float:
        """Share of the device that a product keeps busy: whole tiles, in whole waves over its units.

        The best of the known tilings, as a library would choose. Attention kernels (no grid) count as full.
        """
        if not kernel.rows:
            return 1.0
        useful = kernel.rows * kernel.columns * kernel.copies
        best = 0.0
        for tile_rows, tile_columns, rate in TILES:
            tiles = -(-kernel.rows // tile_rows) * -(-kernel.columns // tile_columns) * kernel.copies
            waves = -(-tiles // self.device.num_units)
            best = max(best, rate * useful / (waves * self.device.num_units * tile_rows * tile_columns))
        return best

    def all_reduce(self, size_bytes: float) -> float:
        """Seconds of a ring all-reduce of `size_bytes` over the devices: 2(n − 1) hops, each 1/n of the data."""
        if self.tp == 1:
            return 0.0
        hops = 2 * (self.tp - 1)
        rate = self.device.link.bytes_per_s * self.assume.link_efficiency
        return self.assume.collective_s + hops * (self.device.link.hop + size_bytes / self.tp / rate)

    def queued(self, kernels: Iterable[Kernel]) -> float:
        """Seconds of kernels that are on the device already, back to back (a CUDA graph)."""
        return sum(self.seconds(kernel) for kernel in kernels)

    def eager(self, kernels: Iterable[Kernel]) -> float:
        """Seconds of kernels that the host launches one by one: each starts when launched and the device is free."""
        host = device = 0.0
        for kernel in kernels:
            host += self.assume.eager_host_s + self.assume.eager_launch_s
            device = max(device, host) + self.seconds(kernel)
        return device
