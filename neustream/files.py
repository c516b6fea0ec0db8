"""Files: JSON read with one-line errors, and texts written all or nothing."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def read_text(path: Path, error: type[Exception] = ValueError) -> str:
    """The text of a file. Raises `error` with one line that names the file where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror})") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{path}: is not UTF-8 text ({cause.reason} at byte {cause.start})") from cause


def read_json(path: Path, error: type[Exception] = ValueError) -> Any:
    """What a JSON file holds. Raises `error` with one line that names the file where it cannot be read or parsed."""
    text = read_text(path, error)
    try:
        return json.loads(text)
    except ValueError as cause:
        raise error(f"{path}: is not JSON ({cause})") from cause


def check_writable(path: Path, flag: str) -> None:
    """Raises ValueError, naming the flag that gave it, if a file cannot be written there."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{flag} {path} cannot be written")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it holds either its old content or all of `text`; makes its folder.

    Raises OSError; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
