"""The patch set in `patches/`: the series, and a manifest with the hash of every touched file before and after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vllm_patch.unified_diff import FilePatch, PatchError, apply_file_patch, parse_patch

PATCHES = Path(__file__).resolve().parent.parent / "patches"
VERSION = "0.5.4"


def sha256(content: bytes | None) -> str | None:
    """Hex digest, or None for a file that does not exist."""
    return None if content is None else hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class Expected:
    """SHA-256 of a file before and after all patches. None: it does not exist then."""

    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class PatchSet:
    """All patches in order, and what they make of each file (path as in the patches: `vllm/...`)."""

    patches: tuple[tuple[str, tuple[FilePatch, ...]], ...]
    files: dict[str, Expected]

    def apply(self, path: str, content: bytes | None) -> bytes | None:
        """The file after all patches, from the file before them. Raises PatchError if it comes out wrong."""
        result = _rewrite(self, path, content, reverse=False)
        return _checked(path, result, self.files[path].after)

    def revert(self, path: str, content: bytes | None) -> bytes | None:
        """The file before all patches, from the file after them. Raises PatchError if it comes out wrong."""
        result = _rewrite(self, path, content, reverse=True)
        return _checked(path, result, self.files[path].before)


def load_patch_set(folder: Path = PATCHES) -> PatchSet:
    """Read series, patches and manifest. Raises PatchError naming what is damaged."""
    patches = load_patches(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        files = {path: Expected(entry["before"], entry["after"]) for path, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PatchError(f"{folder / 'manifest.json'}: {error}") from error
    touched = {patch.path for _, file_patches in patches for patch in file_patches}
    if touched != set(files):
        raise PatchError(f"{folder / 'manifest.json'} does not list the files that the patches touch")
    return PatchSet(patches, files)


def load_patches(folder: Path) -> tuple[tuple[str, tuple[FilePatch, ...]], ...]:
    """The patches that `series` names, in its order."""
    try:
        names = (folder / "series").read_text().split()
        texts = [(folder / name).read_bytes().decode() for name in names]
    except OSError as error:
        raise PatchError(f"patch set in {folder}: {error}") from error
    return tuple((name, _parse(name, text)) for name, text in zip(names, texts, strict=True))


def make_manifest(folder: Path, read: Callable[[str], bytes | None]) -> dict[str, object]:
    """The manifest for the patches in `folder`; `read` gives the unpatched files."""
    patches = load_patches(folder)
    touched = sorted({patch.path for _, file_patches in patches for patch in file_patches})
    bare = PatchSet(patches, {})
    files = {}
    for path in touched:
        before = read(path)
        files[path] = {"before": sha256(before), "after": sha256(_rewrite(bare, path, before, reverse=False))}
    return {"version": VERSION, "files": files}


def _parse(name: str, text: str) -> tuple[FilePatch, ...]:
    try:
        return tuple(parse_patch(text))
    except PatchError as error:
        raise PatchError(f"{name}: {error}") from error


def _rewrite(patch_set: PatchSet, path: str, content: bytes | None, *, reverse: bool) -> bytes | None:
    text = None if content is None else content.decode()
    order = reversed(patch_set.patches) if reverse else patch_set.patches
    for name, file_patches in order:
        for patch in file_patches:
            if patch.path != path:
                continue
            try:
                text = apply_file_patch(patch, text, reverse=reverse)
            except PatchError as error:
                raise PatchError(f"{name}: {error}") from error
    return None if text is None else text.encode()


def _checked(path: str, content: bytes | None, expected: str | None) -> bytes | None:
    if sha256(content) != expected:
        raise PatchError(f"{path}: the result has not the hash in the manifest")
    return content
