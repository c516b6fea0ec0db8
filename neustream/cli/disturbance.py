"""How much other work on the machine disturbs this process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def waited_seconds() -> float:
    """Seconds for which threads of this process have been ready to run and had no core, all told.

    From Linux's /proc/self/task/*/schedstat; 0 where the system does not say.
    """
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, IndexError, ValueError):  # a thread may end meanwhile
            total += int(file.read_text().split()[1])
    return total / 1e9
