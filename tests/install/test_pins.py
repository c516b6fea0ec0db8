"""The lists of packages agree with each other, and with what is installed."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ["cpu", "cuda"]


def pins(target: str) -> dict[str, str]:
    """Package to version, from a constraints file that has nothing but comments and exact pins."""
    result: dict[str, str] = {}
    for line in (ROOT / f"constraints/{target}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([0-9][0-9a-z.+]*)", line)
        assert match, f"constraints/{target}.txt: not an exact pin with a normalised name: {line!r}"
        assert match[1] not in result, f"constraints/{target}.txt: {match[1]} is there twice"
        result[match[1]] = match[2]
    return result


def direct_requirements() -> list[tuple[str, bool]]:
    """Each name in requirements.txt, and whether it is for CUDA alone."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [(re.split(r"[=<> #]", line)[0], "[cuda]" in line) for line in lines if line and line[0] != "#"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_direct_requirement_is_pinned(target: str) -> None:
    wanted = {name for name, cuda_only in direct_requirements() if target == "cuda" or not cuda_only}
    assert wanted - pins(target).keys() == set()


def test_the_cpu_target_has_nothing_that_is_for_cuda() -> None:
    for_cuda = {name for name, cuda_only in direct_requirements() if cuda_only} | {"triton"}
    assert {name for name in pins("cpu") if name in for_cuda or name.startswith("nvidia-")} == set()


def test_the_targets_differ_in_nothing_else() -> None:
    cpu, cuda = pins("cpu"), pins("cuda")
    assert {name for name in cpu if cuda.get(name) != cpu[name]} == {"torch", "vllm"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_package_of_an_unknown_owner_is_never_installed(target: str) -> None:
    assert {"pyairports", "outlines"} & pins(target).keys() == set()


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
    installed["torch"] = installed["torch"].partition("+")[0]  # 2.13.0+cpu
    assert installed == wanted
