"""One interpreter as the keeper sees it: started, ready, running a program, ended."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from agent_plugin.sandbox import seccomp
from agent_plugin.sandbox.bwrap import ROOM, bwrap_command
from agent_plugin.sandbox.cgroups import Group, make_group
from agent_plugin.sandbox.confine import Confinement
from agent_plugin.sandbox.jobs import PROGRAM, Job
from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.strays import run_name
from agent_plugin.sandbox.trees import ROOT, Trees

START = "import sys; sys.path[:0] = [{root!r}]; from agent_plugin.sandbox.worker import main; main()"
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
UIDS = range(61184, 65520)
"""Users for programs: those that systemd sets apart for services without an account."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What all interpreters of one keeper have in common."""

    rung: str
    limits: Limits
    preload: bool
    trees: Trees
    bwrap: str
    base: Path
    abi: int | None
    """The newest Landlock ABI to use; None for all that the kernel knows."""
    parents: tuple[Path, ...]
    """Where control groups can be made; empty: nowhere."""

    @property
    def own_users(self) -> bool:
        """Whether every program gets a user of its own."""
        return self.rung == "landlock" and os.getuid() == 0


@dataclass(slots=True)
class Interpreter:
    """A process that will run one program, or does."""

    process: subprocess.Popen[bytes]
    job: Job
    uid: int | None
    group: Group | None
    control: int
    """Says `ready`; its end, with those of stdout and stderr, says that nothing of it is left."""
    info: int | None
    """bubblewrap's, until it has named the first process inside."""
    pidfd: int
    inside: int | None = None
    """A pidfd of the first process inside: if that ends, all end."""
    is_ready: bool = False
    is_ended: bool = False
    cpu: float = 0.0
    """Seconds of processor time, once it has ended."""

    def read_info(self) -> None:
        """Take the first process's number from bubblewrap."""
        assert self.info is not None
        with os.fdopen(self.info, "rb") as file, contextlib.suppress(ValueError, KeyError, OSError):
            self.inside = os.pidfd_open(int(json.loads(file.read())["child-pid"]))
        self.info = None

    def go(self) -> None:
        """Let it run the program in its folder."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"run\n")
            self.process.stdin.close()

    def kill(self) -> None:
        """End it, whatever it does; the ends of its pipes say when nothing is left."""
        if self.inside is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.inside, signal.SIGKILL)
        elif not self.is_ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Take its status, once `pidfd` says that it has ended."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu = usage.ru_utime + usage.ru_stime
        self.is_ended = True

    @property
    def status(self) -> tuple[int | None, int | None]:
        """`(exit status, signal)`, one of them None. bubblewrap says 128 + signal, as shells do."""
        code = self.process.returncode
        if code < 0:
            return None, -code
        is_signal = self.inside is not None and 128 < code <= 128 + 64
        return (None, code - 128) if is_signal else (code, None)

    def close(self) -> None:
        """Close every descriptor that is still open."""
        for fd in (self.control, self.pidfd, self.info, self.inside):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        pipes: tuple[IO[bytes] | None, ...] = (self.process.stdin, self.process.stdout, self.process.stderr)
        for pipe in pipes:
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def free_user() -> int:
    """A user that no process has."""
    taken = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                taken.add(entry.stat().st_uid)
    return random.SystemRandom().choice([uid for uid in UIDS if uid not in taken])


def start_interpreter(setup: Setup, number: int, fonts: Path | None) -> Interpreter:
    """Make a job folder and start an interpreter for it. Raises OSError."""
    uid = free_user() if setup.own_users else None
    job = Job(setup.base / str(number))
    job.make(uid, fonts)
    name = run_name(os.getpid(), number)
    group = make_group(setup.parents, name, setup.limits) if setup.parents else None
    control, says = os.pipe()
    to_close, keep, info = [says], [says], None
    folders = [str(part) for part in job.parts]
    inside = list(ROOM) if setup.rung == "bwrap" else folders
    environment = ENVIRONMENT | {"HOME": inside[0], "MPLCONFIGDIR": inside[1], "TMPDIR": inside[2]}
    command: list[str] = []
    if setup.rung == "bwrap":
        filter_fd = _filter_pipe()
        info, info_writing = os.pipe()
        keep += [filter_fd, info_writing]
        to_close += [filter_fd, info_writing]
        command = bwrap_command(
            setup.bwrap, setup.trees, folders, environment, filter_fd=filter_fd, info_fd=info_writing
        )
        environment = {}
    command += [setup.trees.executable, "-I", "-S", "-B", "-X", "utf8", "-c", START.format(root=str(ROOT))]
    command.append(json.dumps(_spec(setup, name, inside, uid, group, says)))
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=keep,
            env=environment,
            cwd="/",
            start_new_session=True,
            preexec_fn=group.join if group else None,  # safe: the keeper has a single thread
            bufsize=0,
        )
    finally:
        for fd in to_close:
            os.close(fd)
    return Interpreter(process, job, uid, group, control, info, os.pidfd_open(process.pid))


def _filter_pipe() -> int:
    """The descriptor from which bubblewrap reads the filter under which it starts the interpreter."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(seccomp.build_filter(os.uname().machine, threads=True, starting=True))
    return reading


def _spec(
    setup: Setup, name: str, inside: list[str], uid: int | None, group: Group | None, control: int
) -> dict[str, Any]:
    counted = group is not None or setup.own_users or (setup.rung == "bwrap" and os.getuid() != 0)
    told = Confinement(
        rung=setup.rung,
        limits=setup.limits.to_json(),
        own=tuple(inside),
        readable=setup.trees.readable,
        parent=None if setup.rung == "bwrap" else os.getpid(),
        uid=uid,
        read_past_modes=uid is not None and setup.trees.closed is not None,
        abi=setup.abi,
        threads=counted,
    )
    return {
        "run": name,
        "job": inside[0],
        "program": f"{inside[0]}/{PROGRAM}",
        "paths": setup.trees.paths,
        "preload": setup.preload,
        "control": control,
        "confinement": told.to_json(),
    }
