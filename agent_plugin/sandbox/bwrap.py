"""Rung 1: the interpreter inside bubblewrap, with namespaces of its own and nothing mounted but what it reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

from agent_plugin.sandbox.trees import Trees

DEVICES = ("null", "zero", "full", "random", "urandom")
ROOM = "/job", "/config", "/tmp"
"""Where the folders of a job appear inside."""


def find_bwrap() -> str | None:
    """bubblewrap's path, or None where it is not installed."""
    return shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin:" + os.environ.get("PATH", ""))


def bwrap_command(
    bwrap: str, trees: Trees, folders: Sequence[str], environment: Mapping[str, str], *, filter_fd: int, info_fd: int
) -> list[str]:
    """The command line up to the program to start. `folders`: the job's, in the order of ROOM, below everything else.

    There is no /proc: plots need none, containers often cannot mount one, and it would show the kernel's settings.
    """
    command = [bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    for name, value in environment.items():
        command += ["--setenv", name, value]
    for folder, inside in zip(folders, ROOM, strict=True):
        command += ["--bind", folder, inside]
    for path in trees.readable:
        command += ["--ro-bind", path, path]
    for device in DEVICES:
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--remount-ro", "/", "--chdir", ROOM[0]]
    return [*command, "--seccomp", str(filter_fd), "--info-fd", str(info_fd), "--"]
