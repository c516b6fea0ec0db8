"""Measured visits, kept in a file until the table is written, so that an interrupted profile resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neustream.files import write_atomically

SAVE_EVERY = 2.0
"""Seconds between two writes of the file; what came since the last one is written when measuring stops."""

CALM = 0.1
"""A visit in which threads waited for a core no more than this is undisturbed. An idle machine shows 0.03 to 0.06, one
busy neighbour on two cores 0.4 to 3."""


class Visit(NamedTuple):
    """One timing of a point."""

    seconds: float
    waited: float = 0.0
    """Seconds that this process's threads were ready to run and had no core, per second of the visit."""


class Partial:
    """Visits by the key of their point, for one set of settings.

    A file that was left under other settings, or that is damaged, is not used: `visits` starts empty. Values
    of `settings` must survive JSON.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(dict(settings)))
        self.visits = self._load()
        self._saved_at = time.monotonic()

    @property
    def num_visits(self) -> int:
        """Visits kept so far."""
        return sum(len(visits) for visits in self.visits.values())

    def add(self, key: str, visit: Visit) -> None:
        """Keep one visit of a point."""
        self.visits.setdefault(key, []).append(visit)
        if time.monotonic() - self._saved_at > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the file, all or nothing."""
        write_atomically(self.path, json.dumps({"settings": self.settings, "visits": self.visits}))
        self._saved_at = time.monotonic()

    def discard(self) -> None:
        """Remove the file; the table that was made of it is written."""
        self.path.unlink(missing_ok=True)

    def _load(self) -> dict[str, list[Visit]]:
        try:
            data = json.loads(self.path.read_text())
            if data["settings"] != self.settings:
                return {}
            return {str(key): [Visit(float(s), float(w)) for s, w in visits] for key, visits in data["visits"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def partial_path(out: Path) -> Path:
    """Where the visits of the table at `out` are kept: a hidden file beside it."""
    return out.with_name(f".{out.name}.partial")


def believed(visits: Sequence[Visit]) -> list[float]:
    """Seconds of the undisturbed visits; where there are none, of the one that was disturbed least."""
    calm = [visit.seconds for visit in visits if visit.waited <= CALM]
    return calm or [min(visits, key=lambda visit: visit.waited).seconds]
