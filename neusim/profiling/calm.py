"""How much other work on the machine disturbed a measurement, and which visits to believe."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

CALM = 0.1
"""A visit in which threads waited for a core no more than this is undisturbed. An idle machine shows 0.03 to 0.06, one
busy neighbour on two cores 0.4 to 3."""


class Visit(NamedTuple):
    """One timing of a point."""

    seconds: float
    waited: float = 0.0
    """Seconds that this process's threads were ready to run and had no core, per second of the visit."""


def waited_seconds() -> float:
    """Seconds for which threads of this process have been ready to run and had no core, all told.

    From Linux's /proc/self/task/*/schedstat; 0 where the system does not say.
    """
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, IndexError, ValueError):  # a thread may end meanwhile
            total += int(file.read_text().split()[1])
    return total / 1e9


def believed(visits: Sequence[Visit]) -> list[float]:
    """Seconds of the undisturbed visits; where there are none, of the one that was disturbed least."""
    calm = [visit.seconds for visit in visits if visit.waited <= CALM]
    return calm or [min(visits, key=lambda visit: visit.waited).seconds]
