"""A control group for each run, where this user may make one: counts threads, bounds memory, says who ran out of it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from agent_plugin.sandbox.confine import DATA_BESIDE
from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.strays import is_alive

BESIDE = 8
"""Processes of the sandbox itself in a run's group."""


@dataclass(frozen=True, slots=True)
class Group:
    """The folders of one run's group: one in version 2, one a controller in version 1."""

    folders: tuple[Path, ...]

    def join(self) -> None:
        """Move the calling process into it."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text("0")

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel killed something in it for memory."""
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError, ValueError):
                    counts = dict(line.split() for line in (folder / name).read_text().splitlines())
                    if int(counts.get("oom_kill", 0)):
                        return True
        return False

    def remove(self) -> bool:
        """Whether it is gone; the kernel keeps it while a process is ending."""
        for folder in self.folders:
            with contextlib.suppress(FileNotFoundError):
                try:
                    folder.rmdir()
                except OSError:
                    return False
        return True


def find_parents() -> tuple[Path, ...]:
    """Folders in which groups with the controllers pids and memory can be made; empty where there are none.

    Nothing of the system is changed: a parent counts only if it hands these controllers down already.
    """
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return ()
    old = []
    for _, folder, kind, options, *_ in mounts:
        if kind == "cgroup2":
            own = next((path for _, names, path in groups if not names), "/")
            found = _parent_of_version_2(Path(folder), own)
            if found:
                return (found,)
        elif kind == "cgroup":
            for controller in {"pids", "memory"} & set(options.split(",")):
                own = next((path for _, names, path in groups if controller in names.split(",")), "/")
                old.append(Path(folder + own))
    return tuple(old) if len(old) == 2 and all(os.access(path, os.W_OK) for path in old) else ()


def _parent_of_version_2(root: Path, own: str) -> Path | None:
    folder = root / own.lstrip("/")
    for candidate in (folder, *folder.parents):
        if not candidate.is_relative_to(root):
            return None
        with contextlib.suppress(OSError):
            handed_down = (candidate / "cgroup.subtree_control").read_text().split()
            if {"pids", "memory"} <= set(handed_down) and os.access(candidate, os.W_OK):
                return candidate
    return None


def sweep_groups(parents: tuple[Path, ...]) -> None:
    """Remove the groups of keepers that no longer live."""
    for parent in parents:
        for folder in parent.glob("neustream-*-*"):
            keeper = folder.name.split("-")[1]
            if keeper.isdecimal() and not is_alive(int(keeper)):
                with contextlib.suppress(OSError):  # not empty: it is somebody else's keeper's, which we cannot see
                    folder.rmdir()


def make_group(parents: tuple[Path, ...], name: str, limits: Limits) -> Group | None:
    """A group under the parents with the limits set, or None where that fails."""
    folders = []
    memory = str(limits.memory + DATA_BESIDE)
    values = {"pids.max": str(limits.threads + BESIDE), "memory.max": memory, "memory.swap.max": "0"}
    values |= {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory}
    needed = {"pids.max"}
    try:
        for parent in parents:
            folder = parent / name
            folder.mkdir()
            folders.append(folder)
            for file, value in values.items():
                if (folder / file).exists():
                    (folder / file).write_text(value)
                    needed.discard(file)
    except OSError:
        needed.add("")
    if needed or not folders:
        Group(tuple(folders)).remove()
        return None
    return Group(tuple(folders))
