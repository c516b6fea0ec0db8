"""The vLLM that is to be patched: finding it, telling its state, replacing its files."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vllm_patch.patchset import VERSION, PatchSet, sha256
from vllm_patch.record import Record, sync


class TargetError(ValueError):
    """A target that cannot be patched, or not safely."""


class FileState(StrEnum):
    """What a touched file is now."""

    BEFORE = "not patched"
    AFTER = "patched"
    OUTDATED = "patched by another version of the patch set"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Target:
    """The folder of a vLLM package (the one that holds `version.py` and `engine/`)."""

    package: Path

    @property
    def record(self) -> Record:
        """The patch sets that its files may come from."""
        return Record(self.package)

    def file(self, path: str) -> Path:
        """Where the file lies that the patches call `vllm/...`."""
        return self.package / path.removeprefix("vllm/")

    def read(self, path: str) -> bytes | None:
        """Its content, or None if it does not exist."""
        try:
            return self.file(path).read_bytes()
        except FileNotFoundError:
            return None

    @contextmanager
    def locked(self, *, exclusive: bool) -> Iterator[None]:
        """Keep others out who change the package: also while it is only read, so that no half of a change is seen.

        The lock is on the folder itself and leaves nothing behind. Says so where it has to wait.
        """
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        descriptor = os.open(self.package, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"vllm_patch: waiting for another run on {self.package}", file=sys.stderr, flush=True)
                fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def states(self, patch_set: PatchSet) -> dict[str, FileState]:
        """The state of every file that the patch set touches, or that a recorded one touched."""
        recorded = self.record.sets()
        paths = dict.fromkeys(path for one in (patch_set, *recorded) for path in one.files)
        return {path: _state(path, sha256(self.read(path)), patch_set, recorded) for path in paths}

    def original(self, path: str, state: FileState, patch_set: PatchSet) -> bytes | None:
        """The unpatched content of a file in that state. Raises PatchError if a patch does not come off."""
        content = self.read(path)
        if state is FileState.AFTER:
            return patch_set.revert(path, content)
        if state is FileState.OUTDATED:
            digest = sha256(content)
            by = next(one for one in self.record.sets() if path in one.files and one.files[path].after == digest)
            return by.revert(path, content)
        return content

    def remove_leftovers(self, paths: Iterable[str]) -> None:
        """Delete the temporary files of a run that was killed while it changed those files."""
        for path in paths:
            place = self.file(path)
            for leftover in place.parent.glob(f".{place.name}.*.tmp"):
                leftover.unlink(missing_ok=True)
        self.record.remove_leftovers()

    def replace(self, contents: Mapping[str, bytes | None]) -> None:
        """Give each file its new content, None removing it: all of them, or none if anything goes wrong.

        Every file is written beside its place first, then moved there, so a kill in the middle leaves whole
        files, each patched or not; running the tool again goes on from there. All is on the disk at the end.
        """
        staged: dict[str, Path | None] = {}
        old: dict[str, bytes | None] = {}
        try:
            for path, content in contents.items():
                staged[path] = None if content is None else self._stage(path, content)
            try:
                for path in contents:
                    old[path] = self.read(path)
                    self._move(path, staged[path])
            except BaseException:
                for path, content in old.items():
                    self._move(path, None if content is None else self._stage(path, content))
                raise
            for folder in sorted({self.file(path).parent for path in contents}):
                sync(folder)
        finally:
            for temporary in staged.values():
                if temporary is not None:
                    temporary.unlink(missing_ok=True)

    def _stage(self, path: str, content: bytes) -> Path:
        place = self.file(path)
        descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, place.stat().st_mode & 0o7777 if place.exists() else 0o644)
        return Path(name)

    def _move(self, path: str, temporary: Path | None) -> None:
        place = self.file(path)
        if temporary is not None:
            os.replace(temporary, place)
            return
        place.unlink(missing_ok=True)
        for compiled in place.parent.glob(f"__pycache__/{place.stem}.*.pyc"):
            compiled.unlink(missing_ok=True)


def _state(path: str, digest: str | None, patch_set: PatchSet, recorded: Sequence[PatchSet]) -> FileState:
    current = patch_set.files.get(path)
    if current is not None and digest in (current.before, current.after):
        return FileState.AFTER if digest == current.after else FileState.BEFORE
    others = [one.files[path] for one in recorded if path in one.files]
    if any(digest == other.before for other in others):
        return FileState.BEFORE
    return FileState.OUTDATED if any(digest == other.after for other in others) else FileState.CHANGED


def find_target(folder: Path | None) -> Target:
    """The vLLM in `folder` (an unpacked source archive, a site-packages folder or the package itself), or that
    of the running Python. Raises TargetError if there is none or its version is not 0.5.4."""
    if folder is None:
        spec = importlib.util.find_spec("vllm")
        if spec is None or spec.origin is None:
            raise TargetError(f"vLLM is not installed for {sys.executable}; install it or give --target DIR")
        package = Path(spec.origin).parent
    elif (folder / "vllm" / "version.py").is_file():
        package = folder / "vllm"
    elif (folder / "version.py").is_file() and (folder / "engine").is_dir():
        package = folder
    else:
        raise TargetError(f"no vLLM in {folder}: expected vllm/version.py or version.py there")
    _check_version(package)
    return Target(package)


def _check_version(package: Path) -> None:
    try:
        text = (package / "version.py").read_text()
    except OSError as error:
        raise TargetError(f"cannot tell the version of the vLLM in {package}: {error}") from error
    found = re.search(r"""(?m)^__version__\s*=\s*["']([^"']+)["']""", text)
    if found is None or found[1] != VERSION:
        version = found[1] if found else "unknown"
        raise TargetError(f"the vLLM in {package} has version {version}; the patches are for {VERSION}")
