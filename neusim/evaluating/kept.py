"""Rows of a comparison that is not through: each is kept as it comes, so that an interruption loses nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KEYS = ("device", "model", "trace", "window", "slo", "load", "slowness", "jitter", "seed", "policy")


class Kept:
    """Rows beside the CSV that they will be part of, in `FILE.partial.jsonl`; nowhere where there is no CSV."""

    def __init__(self, csv: Path | None, *, resume: bool = False, keys: Sequence[str] = KEYS) -> None:
        """With `resume` the rows that are there count as done. Raises ValueError, one line, for a damaged file."""
        self.keys = keys
        self.path = None if csv is None else csv.with_name(f"{csv.name}.partial.jsonl")
        self.rows: dict[str, dict[str, Any]] = {}
        """By key, see `key_of`."""
        if self.path is None:
            return
        if resume and self.path.is_file():
            for number, line in enumerate(self.path.read_text().splitlines(), start=1):
                try:
                    row = json.loads(line)
                    self.rows[self.key(row)] = row
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{self.path}:{number}: is no row of a comparison ({error!r})") from error
        else:
            self.path.unlink(missing_ok=True)

    def key(self, row: Mapping[str, Any]) -> str:
        """What tells this run from the others. Raises KeyError where a row lacks a part of it."""
        return key_of(row, self.keys)

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether the run of which this has the keys is done."""
        return self.key(row) in self.rows

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep one more row."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def discard(self) -> None:
        """All rows are where they belong."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def key_of(row: Mapping[str, Any], keys: Sequence[str] = KEYS) -> str:
    """What tells one run of a comparison from the others. Raises KeyError where a row lacks a part of it."""
    return json.dumps([row[key] for key in keys])
