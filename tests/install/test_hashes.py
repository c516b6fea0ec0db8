"""The maintainers' tool that writes the hashes into the constraints files; here without an index."""

from __future__ import annotations

import importlib.util
from types import ModuleType, SimpleNamespace

import pytest

from .conftest import ROOT
from .test_pins import TARGETS, read_pins


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hashes", ROOT / "constraints/hashes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RELEASE = {
    "thing-1.0.tar.gz": "source",
    "thing-1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl": "x86_64",
    "thing-1.0-cp311-cp311-manylinux_2_28_aarch64.whl": "aarch64",
    "thing-1.0-cp38-abi3-manylinux1_x86_64.whl": "stable interface",
    "thing-1.0-py3-none-any.whl": "any",
    "thing-1.0-cp312-cp312-manylinux_2_17_x86_64.whl": "another Python",
    "thing-1.0-cp311-cp311-musllinux_1_2_x86_64.whl": "another C library",
    "thing-1.0-cp311-cp311-win_amd64.whl": "another system",
    "thing-1.0-cp311-cp311-manylinux_2_17_i686.whl": "another processor",
}
TAKEN = ["aarch64", "any", "source", "stable interface", "x86_64"]


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [("thing", "1.0", TAKEN), ("thing", "1.0+cpu", ["source"]), ("torch", "1.0+cpu", []), ("torch", "1.0", TAKEN)],
)
def test_files_that_python_3_11_on_linux_takes_are_listed(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, version: str, expected: list[str]
) -> None:
    def package(file: str, digest: str, version: str = "1.0") -> SimpleNamespace:
        link = SimpleNamespace(filename=file, hashes={"sha256": digest}, is_wheel=file.endswith(".whl"))
        return SimpleNamespace(version=version, link=link)

    packages = [*(package(*item) for item in RELEASE.items()), package("thing-2.0.tar.gz", "newer", "2.0")]
    finder = SimpleNamespace(find_all_packages=lambda name: packages)
    monkeypatch.setattr(tool, "PackageFinder", lambda **options: finder)
    assert tool.find_hashes(name, version) == expected


def test_a_release_that_is_not_there_is_an_error(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = SimpleNamespace(find_all_packages=lambda name: [])
    monkeypatch.setattr(tool, "PackageFinder", lambda **options: finder)
    with pytest.raises(LookupError, match=r"no hash of a file for thing==1\.0"):
        tool.find_hashes("thing", "1.0")


@pytest.mark.parametrize("target", TARGETS)
def test_writing_the_same_hashes_changes_nothing(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    pins = read_pins(target)
    monkeypatch.setattr(tool, "find_hashes", lambda name, _: [one.rpartition(":")[2] for one in pins[name].hashes])
    written: list[str] = []
    path = SimpleNamespace(read_text=(ROOT / f"constraints/{target}.txt").read_text, write_text=written.append)
    tool.rewrite(path)
    assert written == [path.read_text()]
