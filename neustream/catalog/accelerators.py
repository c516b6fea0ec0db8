"""Published peak rates of the devices that latency tables can be estimated for.

Every number is the vendor's: dense tensor rate with float32 accumulation (what matrix products of PyTorch and
vLLM use), memory bandwidth, and the link between devices, in one direction.
"""

from __future__ import annotations

from dataclasses import dataclass

TERA = 1e12
GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Link:
    """What joins two devices: bytes per second in one direction, and seconds per hop of a collective."""

    name: str
    bytes_per_s: float
    hop: float


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One accelerator, by its data sheet."""

    name: str
    title: str
    half_flops: float
    """Dense float16 or bfloat16 tensor operations per second, float32 accumulation."""
    single_flops: float
    """float32 operations per second outside the tensor units."""
    bytes_per_s: float
    memory_bytes: float
    num_units: int
    """Streaming multiprocessors: the granularity in which a matrix product is spread over the device."""
    link: Link
    source: str

    def flops(self, dtype: str) -> float:
        """Peak operations per second in this number format."""
        return self.single_flops if dtype == "float32" else self.half_flops


PCIE4 = Link("PCIe 4.0 x16", 31.5 * GIGA, 5e-6)
NVLINK3 = Link("NVLink 3 (SXM)", 300 * GIGA, 2e-6)
NVLINK4 = Link("NVLink 4 (SXM)", 450 * GIGA, 2e-6)

ACCELERATORS = {
    device.name: device
    for device in (
        Accelerator(
            "rtx4090", "GeForce RTX 4090", 165.2 * TERA, 82.6 * TERA, 1008 * GIGA, 24 * GIGA, 128, PCIE4,
            "NVIDIA Ada GPU Architecture whitepaper",
        ),
        Accelerator(
            "a6000", "RTX A6000", 154.8 * TERA, 38.7 * TERA, 768 * GIGA, 48 * GIGA, 84, PCIE4,
            "NVIDIA RTX A6000 data sheet; GA102 whitepaper",
        ),
        Accelerator(
            "a100-80g", "A100 SXM 80 GB", 312 * TERA, 19.5 * TERA, 2039 * GIGA, 80 * GIGA, 108, NVLINK3,
            "NVIDIA A100 data sheet",
        ),
        Accelerator(
            "a100-80g-pcie", "A100 PCIe 80 GB", 312 * TERA, 19.5 * TERA, 1935 * GIGA, 80 * GIGA, 108, PCIE4,
            "NVIDIA A100 data sheet",
        ),
        Accelerator(
            "a100-40g", "A100 SXM 40 GB", 312 * TERA, 19.5 * TERA, 1555 * GIGA, 40 * GIGA, 108, NVLINK3,
            "NVIDIA A100 data sheet",
        ),
        Accelerator(
            "a100-40g-pcie", "A100 PCIe 40 GB", 312 * TERA, 19.5 * TERA, 1555 * GIGA, 40 * GIGA, 108, PCIE4,
            "NVIDIA A100 data sheet",
        ),
        Accelerator(
            "l40s", "L40S", 362.05 * TERA, 91.6 * TERA, 864 * GIGA, 48 * GIGA, 142, PCIE4,
            "NVIDIA L40S data sheet",
        ),
        Accelerator(
            "h100", "H100 SXM 80 GB", 989.4 * TERA, 66.9 * TERA, 3350 * GIGA, 80 * GIGA, 132, NVLINK4,
            "NVIDIA H100 data sheet",
        ),
        Accelerator(
            "h200", "H200 SXM 141 GB", 989.4 * TERA, 66.9 * TERA, 4800 * GIGA, 141 * GIGA, 132, NVLINK4,
            "NVIDIA H200 data sheet",
        ),
    )
}  # fmt: skip


def find_accelerator(name: str) -> Accelerator:
    """The device of that name. Raises ValueError, naming the known ones, for any other."""
    device = ACCELERATORS.get(name.lower())
    if device is None:
        raise ValueError(f"unknown device {name!r}; rates are known of {', '.join(ACCELERATORS)}")
    return device
