"""What could be left of a program: its processes, by their ancestry and by the name of the run they belong to."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


def run_name(keeper: int, number: int) -> str:
    """The name of one run: its control group has it, and the command lines of its processes."""
    return f"neustream-{keeper}-{number}"


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_of(keeper: int) -> list[int]:
    """Processes of that keeper, zombies left out: its children, its session, and all that carry a run of it by name."""
    mark = run_name(keeper, 0).removesuffix("0").encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                state, parent, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                is_its = str(keeper) in (parent, session) or mark in (entry / "cmdline").read_bytes()
                if is_its and state != "Z":
                    found.append(int(entry.name))
    return found


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
