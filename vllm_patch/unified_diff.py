"""Reads git patches and applies them to text, exactly: no fuzz, no offsets, either direction."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class PatchError(ValueError):
    """A patch that cannot be read, or text that it does not fit."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines to find at `old_start`, and the lines that take their place at `new_start` (both from 1)."""

    old_start: int
    old: tuple[str, ...]
    new_start: int
    new: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FilePatch:
    """The changes to one file. A file that is created has one hunk with no old lines."""

    path: str
    hunks: tuple[Hunk, ...]
    creates: bool = False


def split_lines(text: str) -> list[str]:
    """Lines with their ends. Only a newline ends a line here, as in git; str.splitlines knows ten more ends."""
    return list(io.StringIO(text))


def parse_patch(text: str) -> list[FilePatch]:
    """The file patches of a git patch; whatever stands before the first `diff --git` is its description.

    Raises PatchError for what the tool does not do: renames, deletions, binary files, mode changes, files
    without a newline at the end.
    """
    sections = re.split(r"(?m)^diff --git ", text)[1:]
    if not sections:
        raise PatchError("no 'diff --git' line in it")
    return [_parse_section(section) for section in sections]


def _parse_section(section: str) -> FilePatch:
    lines = split_lines(section)
    path = lines[0].rstrip("\n").rpartition(" b/")[2]
    start = next((i for i, line in enumerate(lines) if line.startswith("@@ ")), None)
    if start is None:
        raise PatchError(f"{path}: no hunk")
    header = "".join(lines[1:start])
    for word in ("rename ", "deleted file", "old mode", "GIT binary", "similarity"):
        if word in header:
            raise PatchError(f"{path}: {word.strip()!r} is not supported")
    hunks = []
    position = start
    while position < len(lines):
        hunk, position = _parse_hunk(path, lines, position)
        hunks.append(hunk)
    return FilePatch(path, tuple(hunks), creates="--- /dev/null" in header)


def _parse_hunk(path: str, lines: list[str], position: int) -> tuple[Hunk, int]:
    match = _HUNK.match(lines[position])
    if match is None:
        raise PatchError(f"{path}: not a hunk header: {lines[position].rstrip()}")
    num_old = int(match[2] or 1)
    num_new = int(match[4] or 1)
    position += 1
    old: list[str] = []
    new: list[str] = []
    while len(old) < num_old or len(new) < num_new:
        line = lines[position] if position < len(lines) else ""
        kind, body = line[:1], line[1:]
        if kind not in (" ", "-", "+"):
            raise PatchError(f"{path}: cut short, or not a hunk line: {line.rstrip()!r}")
        if kind != "+":
            old.append(body)
        if kind != "-":
            new.append(body)
        position += 1
    return Hunk(int(match[1]), tuple(old), int(match[3]), tuple(new)), position


def apply_file_patch(patch: FilePatch, text: str | None, *, reverse: bool = False) -> str | None:
    """`text` with the patch applied (or taken back); None stands for a file that does not exist.

    Raises PatchError where the text is not what the patch expects.
    """
    if patch.creates:
        content = "".join(patch.hunks[0].new)
        wanted, result = (content, None) if reverse else (None, content)
        if text != wanted:
            raise PatchError(f"{patch.path}: {'differs from what the patch made' if reverse else 'exists already'}")
        return result
    if text is None:
        raise PatchError(f"{patch.path}: no such file")
    lines = split_lines(text)
    result_lines: list[str] = []
    position = 0
    for hunk in patch.hunks:
        start, old, new = (hunk.new_start, hunk.new, hunk.old) if reverse else (hunk.old_start, hunk.old, hunk.new)
        start -= 1 if old else 0
        if start < position or tuple(lines[start : start + len(old)]) != old:
            raise PatchError(f"{patch.path}: does not fit at line {start + 1}")
        result_lines += lines[position:start]
        result_lines += new
        position = start + len(old)
    return "".join(result_lines + lines[position:])
