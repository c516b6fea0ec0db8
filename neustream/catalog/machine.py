"""What this machine computes on, as a short name: the `device` of a table and its folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from neustream.catalog.llms import LlmShape

DEVICES = ("cpu", "cuda")


def local_device() -> str:
    """`cuda` where the driver lists an NVIDIA GPU, else `cpu`. Imports no framework."""
    return "cuda" if gpu_names() else "cpu"


def device_slug(device: str | None = None) -> str:
    """`rtx4090`, `a6000`, `h200`; `cpu-<processor>-<cores>`. `device` is `cpu`, `cuda` or None for the local one.

    Raises ValueError for `cuda` where there is no NVIDIA GPU.
    """
    if (device or local_device()) == "cpu":
        return f"cpu-{cpu_slug(cpu_name())}-{num_cores()}"
    names = gpu_names()
    if not names:
        raise ValueError("device cuda: the driver lists no NVIDIA GPU on this machine; use cpu")
    return gpu_slug(names[0])


def gpu_names() -> list[str]:
    """The names of the visible NVIDIA GPUs, as `nvidia-smi` gives them; empty where there are none."""
    return _nvidia_smi("name")


def free_gpu_bytes() -> int:
    """Free memory of the first visible NVIDIA GPU. Raises ValueError where there is none."""
    return _gpu_bytes("memory.free")


def total_gpu_bytes() -> int:
    """All memory of the first visible NVIDIA GPU. Raises ValueError where there is none."""
    return _gpu_bytes("memory.total")


def _gpu_bytes(field: str) -> int:
    rows = _nvidia_smi(field)
    if not rows:
        raise ValueError("the driver lists no NVIDIA GPU on this machine")
    return int(rows[0].split()[0]) << 20  # "80000 MiB"


def check_tensor_parallel(model: LlmShape, tp: int, device: str) -> None:
    """Raises ValueError if vLLM cannot spread the model over `tp` devices of this machine."""
    if model.num_heads % tp:
        raise ValueError(f"--tp must divide the {model.num_heads} heads of {model.name}, got {tp}")
    if tp == 1:
        return
    if device == "cpu" and find_spec("intel_extension_for_pytorch") is None:
        missing = "vLLM 0.5.4 needs intel_extension_for_pytorch, which is not installed"
        raise ValueError(f"--tp must be 1 on this CPU, got {tp}: for more {missing}")
    if device == "cuda" and tp > len(gpu_names()):
        raise ValueError(f"--tp must be at most {len(gpu_names())}, the GPUs of this machine, got {tp}")


def _nvidia_smi(field: str) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "" or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    if visible:
        command.append(f"--id={visible}")
    result = subprocess.run(command, capture_output=True, text=True)
    return [line.strip() for line in result.stdout.splitlines() if line.strip()] if result.returncode == 0 else []


def gpu_slug(name: str) -> str:
    """`NVIDIA GeForce RTX 4090` → `rtx4090`; `NVIDIA RTX A6000` → `a6000`; `NVIDIA H100 80GB HBM3` → `h100`.

    Memory sizes and sockets are left out, but for the A100: `a100-80g`. A slower build keeps its name: `h100-pcie`.
    """
    memory = re.search(r"(?i)\b(\d+)\s?gb", name) if re.search(r"(?i)\ba100\b", name) else None
    name = re.sub(r"(?i)\b(nvidia|geforce|tesla|quadro|generation|graphics)\b", " ", name)
    name = re.sub(r"(?i)\b(\d+\s?gb|hbm\w*|sxm\d*)\b", " ", name)
    name = re.sub(r"(?i)\brtx\s+(?=a\d)", " ", name)
    words = re.findall(r"[a-z0-9]+", name.lower())
    build = [word for word in words if word in ("pcie", "nvl")]
    # An A100 is sold with 40 and with 80 GB, and the larger memory is the faster one.
    size = [f"{memory[1]}g"] if memory else []
    return "-".join(["".join(word for word in words if word not in build), *size, *build])


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def cpu_slug(name: str) -> str:
    """`AMD EPYC 9R14 96-Core Processor` → `amd-epyc-9r14`; `Intel(R) Xeon(R) CPU @ 2.80GHz` → `intel-xeon`."""
    name = re.sub(r"@.*|\((?:r|tm|c)\)", " ", name, flags=re.IGNORECASE)
    name = re.sub(r"(?i)\b(cpu|processor|\w+-core|with .*)\b", " ", name)
    return "-".join(re.findall(r"[a-z0-9]+", name.lower())) or "unknown"


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor, as /proc/cpuinfo names them; empty where it does not say."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
