"""Copies of the patch sets that a vLLM's files may come from, kept in the vLLM itself.

A newer patch set needs the older one to take it back. While one replaces the other, files of both are there, so a set
is added before the first file changes, and the others are forgotten after the last one has. A run that is killed in
between leaves all the sets that the next one needs, however many were under way.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_patch.patchset import PatchSet, load_patch_set
from vllm_patch.unified_diff import PatchError


@dataclass(frozen=True, slots=True)
class Record:
    """The folder `.vllm_patch` in a vLLM package: one folder for each patch set, named by what is in it.

    Earlier versions kept one set, in the folder itself; such a record is read, and gone after the next change.
    """

    package: Path

    @property
    def folder(self) -> Path:
        """Where the sets lie."""
        return self.package / ".vllm_patch"

    def sets(self) -> list[PatchSet]:
        """Every set that is kept. One that cannot be read counts as not there."""
        result = []
        for place in (self.folder, *self._places()):
            try:
                result.append(load_patch_set(place))
            except PatchError:
                continue
        return result

    def add(self, source: Path) -> None:
        """Keep a copy of the patch set in `source`, on the disk when this returns."""
        names = _names(source)
        place = self.folder / _digest(source)
        if place.is_dir() and all((place / name).is_file() for name in names):
            return
        temporary = Path(tempfile.mkdtemp(dir=self.package, prefix=f"{self.folder.name}.", suffix=".tmp"))
        for name in names:
            shutil.copyfile(source / name, temporary / name)
            (temporary / name).chmod(0o644)
            sync(temporary / name)
        mode = stat.S_IMODE(self.package.stat().st_mode) & 0o777
        temporary.chmod(mode)  # mkdtemp's is for one user alone, but others ask for the state too
        sync(temporary)
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(mode)
        sync(self.package)
        shutil.rmtree(place, ignore_errors=True)
        temporary.rename(place)
        sync(self.folder)

    def holds_only(self, source: Path) -> bool:
        """Whether the set in `source` is kept, and nothing else."""
        return self.folder.is_dir() and {entry.name for entry in self.folder.iterdir()} == {_digest(source)}

    def forget_others(self, source: Path) -> None:
        """Drop every set but the one in `source`."""
        keep = self.folder / _digest(source)
        for entry in self.folder.iterdir():
            if entry.is_dir() and entry != keep:
                shutil.rmtree(entry)
            elif entry != keep:
                entry.unlink()

    def forget_all(self) -> None:
        """Drop every set."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Delete the copies that a killed run had not finished."""
        for leftover in self.package.glob(f"{self.folder.name}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _places(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from sorted(entry for entry in self.folder.iterdir() if entry.is_dir())


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(source: Path) -> list[str]:
    return ["series", "manifest.json", *(source / "series").read_text().split()]


def _digest(source: Path) -> str:
    """A name for the patch set in `source`, the same for the same content."""
    content = hashlib.sha256()
    for name in _names(source):
        content.update(f"{name}\0".encode() + hashlib.sha256((source / name).read_bytes()).digest())
    return content.hexdigest()[:16]
