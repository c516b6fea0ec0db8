"""What an interpreter does to itself before it gets a program: limits, another user, no capabilities, the two walls."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agent_plugin.sandbox import landlock, seccomp
from agent_plugin.sandbox.limits import MIB, Limits

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_CAP_AMBIENT = 1, 4, 8, 24, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522
ADDRESS_SPACE_BESIDE = 2048 * MIB
"""What libraries map without using it; RLIMIT_DATA counts what a program really has."""
DATA_BESIDE = 256 * MIB
"""Private memory of an interpreter with matplotlib, and room for it to work."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a worker is told to put on; JSON both ways."""

    rung: str
    limits: dict[str, Any]
    own: tuple[str, ...]
    """Folders where the program may write."""
    readable: tuple[str, ...]
    """Files and trees that it may read."""
    parent: int | None
    """The process with which the worker ends; None where the sandbox sees to that."""
    uid: int | None
    """The user to become; None to stay who it is."""
    read_past_modes: bool
    """Whether the readable trees lie behind folders that only root may enter."""
    abi: int | None
    """The newest Landlock ABI to use; None for all that the kernel knows."""
    threads: bool
    """Whether something counts threads, so that the program may have them."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def set_limits(limits: Limits, *, counted_by_user: bool) -> None:
    """Every resource limit but processor time, soft and hard alike; `counted_by_user`: threads are the user's alone."""
    data = limits.memory + DATA_BESIDE
    values = {
        resource.RLIMIT_AS: data + ADDRESS_SPACE_BESIDE,
        resource.RLIMIT_DATA: data,
        resource.RLIMIT_STACK: 8 * MIB,
        resource.RLIMIT_FSIZE: limits.file_size,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    if counted_by_user:
        values[resource.RLIMIT_NPROC] = limits.threads
    for name, value in values.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def set_cpu_limit(seconds: float) -> None:
    """Further processor seconds from now: SIGXCPU at the limit, SIGKILL one second later."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds + 0.999)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, soft + 1))


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [*arguments, 0, 0, 0, 0][:4]
    if libc.prctl(option, *(ctypes.c_ulong(argument) for argument in padded)) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _set_capabilities(mask: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    data = struct.pack("=6I", mask, mask, 0, 0, 0, 0)
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset: " + os.strerror(ctypes.get_errno()))


def become(uid: int, *, keep: Sequence[int] = ()) -> None:
    """Another user and group for good, without capabilities but those to keep. Needs root. Raises OSError."""
    libc = ctypes.CDLL(None)
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    _prctl(PR_SET_KEEPCAPS, 1 if keep else 0)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _set_capabilities(sum(1 << capability for capability in keep))
    _prctl(PR_SET_KEEPCAPS, 0)


def end_with_parent(parent: int) -> None:
    """This process is killed when its parent ends. After a change of user, which undoes it."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def confine(told: Confinement) -> None:
    """Put everything on. What cannot be put on raises OSError, and the interpreter must not run a program."""
    limits = Limits.from_json(told.limits)
    set_limits(limits, counted_by_user=told.uid is not None or told.rung == "bwrap")
    os.umask(0o077)
    if told.uid is not None:
        become(told.uid, keep=(CAP_DAC_READ_SEARCH,) if told.read_past_modes else ())
    if told.parent is not None:
        end_with_parent(told.parent)
    if told.rung == "none":
        return
    seccomp.forbid_new_privileges()
    if told.rung == "landlock":
        _prctl(PR_SET_DUMPABLE, 0)
        landlock.restrict(rules(told), abi=told.abi)
    program = seccomp.build_filter(os.uname().machine, pid=os.getpid(), threads=told.threads)
    seccomp.install_filter(program)


def rules(told: Confinement) -> list[tuple[str, int]]:
    """Landlock's rules for this worker."""
    devices = [("/dev/null", landlock.READ_FILE | landlock.WRITE_FILE)]
    devices += [(f"/dev/{name}", landlock.READ_FILE) for name in ("zero", "random", "urandom")]
    return [
        *((path, landlock.OWN) for path in told.own),
        *((path, landlock.READ) for path in told.readable),
        *devices,
    ]
