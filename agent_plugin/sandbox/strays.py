"""Processes that outlive a program which nothing walls in: they become the keeper's children, and end here."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


def _children() -> Iterator[int]:
    """Children of this process, by the kernel's table."""
    me = str(os.getpid())
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                if (entry / "stat").read_text().rpartition(")")[2].split()[1] == me:
                    yield int(entry.name)


def kill_strays(known: set[int]) -> None:
    """Kill and reap the children that are not known, and theirs, until none is left."""
    while strays := [pid for pid in _children() if pid not in known]:
        for pid in strays:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
