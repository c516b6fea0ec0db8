"""The folder of one run. A run never overwrites another, and what it has measured is on disk after every setting."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neustream.cli.arguments import BadInput
from neustream.cli.paths import RUNS
from neustream.files import write_atomically
from neustream.records import JsonLines


class RunWriter:
    """Writes `requests.jsonl`, `steps.jsonl`, `summary.json` and the two logs of one run.

    Context manager: closing flushes the records, also after an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests = JsonLines(path / "requests.jsonl")
        self.steps = JsonLines(path / "steps.jsonl")

    @property
    def name(self) -> str:
        return self.path.name

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, all or nothing."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")

    def write_lines(self, name: str, lines: Sequence[str]) -> None:
        """Write a text file of these lines."""
        (self.path / name).write_text("".join(line + "\n" for line in lines))

    def write_error(self, error: BaseException) -> Path:
        """Keep the trace of an unexpected error, if there is room for it; returns where."""
        with contextlib.suppress(OSError):
            (self.path / "error.txt").write_text("".join(traceback.format_exception(error)))
        return self.path / "error.txt"

    def flush(self) -> None:
        """Put the records so far on disk."""
        self.requests.flush()
        self.steps.flush()

    def give_up(self) -> None:
        """Close the records, whether or not there is room for the rest of them."""
        for lines in (self.requests, self.steps):
            with contextlib.suppress(OSError):
                lines.close()

    def close(self) -> None:
        try:
            self.requests.close()
        finally:
            self.steps.close()

    def remove_if_empty(self) -> None:
        """Leave nothing behind of a run that ended before it measured anything."""
        self.close()
        files = list(self.path.iterdir())
        if all(file.stat().st_size == 0 for file in files):
            for file in files:
                file.unlink()
            self.path.rmdir()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def create_run_folder(out: str | None, policy: str, model: str, *, runs: Path = RUNS) -> RunWriter:
    """Make the folder of a new run: `runs/<out>`, or `out` itself where it is a path.

    Raises BadInput if there is a run in it already, or it cannot be written.
    """
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{policy}-{model.rstrip('/').rsplit('/', 1)[-1]}"
    path = runs / stamp if out is None else Path(out) if os.sep in out else runs / out
    try:
        if out is None:
            path = _make_new(path)
        else:
            _claim(path)
        return RunWriter(path)
    except OSError as error:
        raise BadInput(f"cannot write the output folder {path}: {error.strerror}") from error


def _make_new(path: Path) -> Path:
    """Make the folder, or one of that name and a number; no other run gets the same, also in the same moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in itertools.chain([path], (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))):
        with contextlib.suppress(FileExistsError):
            name.mkdir()
            return name
    raise AssertionError("unreachable: the names do not end")


def _claim(path: Path) -> None:
    """Make the folder of a name that the user chose, which may be there if it is empty. Raises BadInput, OSError."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        if any(path.iterdir()):
            raise FileExistsError
        (path / "requests.jsonl").touch(exist_ok=False)
    except FileExistsError:
        raise BadInput(f"{path} exists and is not empty; name another --out, or remove it") from None
