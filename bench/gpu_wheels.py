"""The wheels of the campaign on a GPU machine: collected where there is a network, installed where there is none.

Imports the standard library only: what the rest needs is not installed yet.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

PINS = Path(__file__).resolve().with_name("gpu-wheels.txt")
LIMIT = 64 << 20
"""Bytes that a folder of wheels may have, so that it can travel with the code."""
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
ABIS = ("cp312", "abi3", "none")
THERE_STAYS = {"numpy": "numpy", "pillow": "PIL", "matplotlib": "matplotlib"}
"""Wheel → module: PyTorch and what else the machine has may be built for its own, so a wheel does not replace it."""
NEEDED = ("torch", "numpy", "PIL", "diffusers", "transformers", "safetensors", "huggingface_hub", "tqdm")


class WheelsError(RuntimeError):
    """The wheels cannot be had; one line that says why."""


def collect(folder: Path) -> str:
    """Download the wheels of `gpu-wheels.txt`, for Python 3.12 on Linux; returns a line that says what is there.

    Raises WheelsError where pip fails or the folder is too large.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--python-version", "3.12", "--implementation", "cp"]
    command += [flag for platform in PLATFORMS for flag in ("--platform", platform)]
    command += [flag for abi in ABIS for flag in ("--abi", abi)]
    if subprocess.run([*command, "--dest", str(folder), "--requirement", str(PINS)]).returncode:
        raise WheelsError(f"pip could not download the wheels of {PINS.name}; its own lines say why")
    size, count = size_of(folder)
    return f"{count} wheels, {size / (1 << 20):.1f} MiB, are in {folder}"


def size_of(folder: Path) -> tuple[int, int]:
    """Bytes and number of the wheels in a folder. Raises WheelsError for none, or more than the limit."""
    wheels = list(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    if not wheels:
        raise WheelsError(f"{folder} holds no wheel; `bash bench/gpu.sh --collect-wheels DIR` fills a folder")
    if size > LIMIT:
        raise WheelsError(
            f"{folder} holds {size / (1 << 20):.1f} MiB of wheels, which may be {LIMIT >> 20} MiB at most"
        )
    return size, len(wheels)


def install(folder: Path, target: Path) -> None:
    """Install the wheels into `target`, and nothing into the system; nothing is done where they are there already.

    Raises WheelsError where pip fails.
    """
    size_of(folder)
    wheels = [wheel for wheel in sorted(folder.glob("*.whl")) if not _is_there(wheel)]
    names = [sys.version, *(wheel.name for wheel in wheels)]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    mark = target / ".installed"
    if mark.exists() and mark.read_text() == digest:
        return
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--isolated", "--no-index", "--no-deps"]
    command += ["--no-compile", "--disable-pip-version-check", "--target", str(target), *map(str, wheels)]
    print(f"installing {len(wheels)} wheels into {target}", file=sys.stderr, flush=True)
    if wheels and subprocess.run(command).returncode:
        raise WheelsError(f"pip could not install the wheels of {folder}; its own lines say why")
    target.mkdir(parents=True, exist_ok=True)
    mark.write_text(digest)


def _is_there(wheel: Path) -> bool:
    module = THERE_STAYS.get(wheel.name.split("-")[0].lower())
    return module is not None and find_spec(module) is not None


def check_modules(target: Path) -> None:
    """Let what is installed in `target` be imported. Raises WheelsError naming a module that is missing."""
    sys.path.insert(0, str(target))
    importlib.invalidate_caches()
    missing = [module for module in NEEDED if find_spec(module) is None]
    if "torch" in missing:
        raise WheelsError(f"{sys.executable} has no PyTorch; PYTHON=/path/to/python3 names a Python that has")
    if missing:
        remedy = "`bash bench/gpu.sh --collect-wheels DIR` makes a folder of wheels where there is a network"
        raise WheelsError(f"{sys.executable} has no {', '.join(missing)}: give --wheels DIR; {remedy}")
