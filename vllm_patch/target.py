"""The vLLM that is to be patched: finding it, telling its state, replacing its files."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vllm_patch.patchset import VERSION, PatchSet, load_patch_set, sha256
from vllm_patch.unified_diff import PatchError


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
    """The folder of a vLLM package (the one that holds `version.py` and `engine/`).

    A patched vLLM keeps a copy of the patch set in `record`, so that a newer set can take the older one back.
    """

    package: Path

    @property
    def record(self) -> Path:
        """Where the copy of the applied patch set lies."""
        return self.package / ".vllm_patch"

    def file(self, path: str) -> Path:
        """Where the file lies that the patches call `vllm/...`."""
        return self.package / path.removeprefix("vllm/")

    def read(self, path: str) -> bytes | None:
        """Its content, or None if it does not exist."""
        try:
            return self.file(path).read_bytes()
        except FileNotFoundError:
            return None

    def applied_set(self) -> PatchSet | None:
        """The patch set that was applied here, if one is recorded."""
        try:
            return load_patch_set(self.record)
        except PatchError:
            return None

    def states(self, patch_set: PatchSet) -> dict[str, FileState]:
        """The state of every file that the patch set touches, or that an applied one touched."""
        applied = self.applied_set()
        paths = {**patch_set.files, **(applied.files if applied is not None else {})}
        return {path: _state(path, sha256(self.read(path)), patch_set, applied) for path in paths}

    def original(self, path: str, state: FileState, patch_set: PatchSet) -> bytes | None:
        """The unpatched content of a file in that state. Raises PatchError if a patch does not come off."""
        content = self.read(path)
        if state is FileState.AFTER:
            return patch_set.revert(path, content)
        if state is FileState.OUTDATED:
            applied = self.applied_set()
            assert applied is not None, path
            return applied.revert(path, content)
        return content

    def write_record(self, folder: Path) -> None:
        """Keep a copy of the patch set in `folder`, in place of an older one."""
        temporary = Path(tempfile.mkdtemp(dir=self.package, prefix=".vllm_patch.", suffix=".tmp"))
        names = ["series", "manifest.json", *(folder / "series").read_text().split()]
        for name in names:
            shutil.copyfile(folder / name, temporary / name)
        self.remove_record()
        temporary.rename(self.record)

    def remove_record(self) -> None:
        """Forget which patch set was applied."""
        shutil.rmtree(self.record, ignore_errors=True)

    def remove_leftovers(self, patch_set: PatchSet) -> None:
        """Delete the temporary files of a run that was killed."""
        for path in patch_set.files:
            place = self.file(path)
            for leftover in place.parent.glob(f".{place.name}.*.tmp"):
                leftover.unlink(missing_ok=True)
        for leftover in self.package.glob(f"{self.record.name}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def replace(self, contents: Mapping[str, bytes | None]) -> None:
        """Give each file its new content, None removing it: all of them, or none if anything goes wrong.

        Every file is written beside its place first, then moved there, so a kill in the middle leaves whole
        files, each patched or not; running the tool again goes on from there.
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
        finally:
            for temporary in staged.values():
                if temporary is not None:
                    temporary.unlink(missing_ok=True)

    def _stage(self, path: str, content: bytes) -> Path:
        place = self.file(path)
        descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
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


def _state(path: str, digest: str | None, patch_set: PatchSet, applied: PatchSet | None) -> FileState:
    current = patch_set.files.get(path)
    if current is not None and digest in (current.before, current.after):
        return FileState.AFTER if digest == current.after else FileState.BEFORE
    older = applied.files.get(path) if applied is not None else None
    if older is not None and digest in (older.before, older.after):
        return FileState.OUTDATED if digest == older.after else FileState.BEFORE
    return FileState.CHANGED


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
