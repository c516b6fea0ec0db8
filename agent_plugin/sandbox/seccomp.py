"""System-call filters in the kernel's BPF, written by hand: what a program may ask of the kernel.

An allow list: whatever is not named fails with EPERM, and a foreign instruction set (32 bit, x32) ends the process. No
filter can read memory, so it decides by the call's number and by arguments that are plain numbers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Collection

from agent_plugin.sandbox.syscalls import ALLOWED, NUMBERS, PRETENDED

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of linux/audit.h."""
X32_BIT = 0x40000000

# linux/bpf_common.h and linux/seccomp.h
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
SET_MODE_FILTER, FLAG_TSYNC = 1, 1
PR_SET_NO_NEW_PRIVS = 38

NAMESPACES = 0x7E020000
CLONE_THREAD = 0x00010000
SET_ID_BITS = 0o6000
O_ACCMODE, O_TRUNC = 3, 0o1000
STARTING = ("execve", "seccomp", "prctl", "kill", "tgkill")
F_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
"""F_DUPFD … F_SETLKW, open files' locks, F_DUPFD_CLOEXEC, F_GETPIPE_SZ: nothing that makes the kernel send signals."""
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
PRCTLS = (15, 16, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME, PR_SET_VMA."""

Instruction = tuple[int, int, int, int]
"""(operation, jump if true, jump if false, constant)"""


class SeccompError(OSError):
    """The filter cannot be made or installed here; the message says why."""


def _fail(number: int) -> Instruction:
    return (RETURN, 0, 0, ERRNO | number)


def _load_argument(index: int) -> Instruction:
    """The lower half of an argument: the kernel reads the arguments checked here as 32-bit numbers."""
    return (LOAD, 0, 0, 16 + 8 * index)


def _one_of(argument: int, values: tuple[int, ...], otherwise: int = errno.EPERM) -> list[Instruction]:
    """Allowed if the argument is one of the values."""
    tests = [(JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_load_argument(argument), *tests, _fail(otherwise), (RETURN, 0, 0, ALLOW)]


def _masked(argument: int, mask: int, value: int) -> list[Instruction]:
    """Refused if `argument & mask` is not `value`; falls through otherwise."""
    return [_load_argument(argument), (AND, 0, 0, mask), (JUMP_EQUAL, 1, 0, value), _fail(errno.EPERM)]


def _open(flags: int | None, mode: int) -> list[Instruction]:
    """No set-id files, and no emptying of a file that is opened for reading (which Landlock misses before ABI 3)."""
    body = _masked(mode, SET_ID_BITS, 0)
    if flags is not None:
        body += [_load_argument(flags), (AND, 0, 0, O_ACCMODE | O_TRUNC), (JUMP_EQUAL, 0, 1, O_TRUNC)]
        body += [_fail(errno.EPERM)]
    return [*body, (RETURN, 0, 0, ALLOW)]


def _rules(pid: int | None, threads: bool) -> dict[str, list[Instruction]]:
    rules: dict[str, list[Instruction]] = {name: [(RETURN, 0, 0, ALLOW)] for name in ALLOWED}
    rules |= {name: [_fail(0)] for name in PRETENDED}
    rules |= {
        "clone3": [_fail(errno.ENOSYS)],  # its flags lie in memory; libraries fall back to clone
        "ioctl": _one_of(1, IOCTLS, errno.ENOTTY),
        "fcntl": _one_of(1, F_COMMANDS),
        "prctl": _one_of(0, PRCTLS),
        "prlimit64": _one_of(0, (0,) if pid is None else (0, pid)),
        "open": _open(1, 2),
        "openat": _open(2, 3),
        "creat": _open(None, 1),
        "renameat2": _one_of(4, (0,)),
    }
    if threads:
        rules["clone"] = [*_masked(0, CLONE_THREAD | NAMESPACES, CLONE_THREAD), (RETURN, 0, 0, ALLOW)]
    if pid is not None:
        rules |= {name: _one_of(0, (pid,)) for name in ("kill", "tgkill")}
    return rules


def build_filter(
    machine: str,
    *,
    pid: int | None = None,
    threads: bool = False,
    starting: bool = False,
    only: Collection[str] | None = None,
) -> bytes:
    """The filter's program, as the kernel and bubblewrap take it (an array of `struct sock_filter`).

    `pid`: the only process that may be signalled. `threads`: whether further threads may be made; processes never may.
    `starting`: what starts an interpreter may be done too (execve, a filter on top). `only`: of the calls, just these.
    Raises SeccompError for a processor that is not known.
    """
    if machine not in ARCHITECTURES:
        raise SeccompError(f"no system-call filter for the processor {machine!r}; there are {', '.join(ARCHITECTURES)}")
    numbers = NUMBERS[machine]
    rules = _rules(pid, threads)
    if starting:
        rules |= {name: [(RETURN, 0, 0, ALLOW)] for name in STARTING}
    program: list[Instruction] = [
        (LOAD, 0, 0, 4),
        (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0),
    ]
    if machine == "x86_64":
        program += [(JUMP_AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
    for name, body in rules.items():
        if name in numbers and (only is None or name in only):
            program += [(JUMP_EQUAL, 0, len(body), numbers[name]), *body]
    program.append(_fail(errno.EPERM))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forbid_new_privileges() -> None:
    """No set-id program gives this process anything from now on. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise SeccompError(ctypes.get_errno(), "no_new_privs: " + os.strerror(ctypes.get_errno()))


def install_filter(program: bytes) -> None:
    """Binds every thread of this process, for ever. Raises SeccompError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = NUMBERS[os.uname().machine]["seccomp"]
    structure = _Program(len(program) // 8, program)
    result = libc.syscall(ctypes.c_long(number), SET_MODE_FILTER, FLAG_TSYNC, ctypes.byref(structure))
    if result != 0:
        raise SeccompError(ctypes.get_errno(), "seccomp: " + os.strerror(ctypes.get_errno()))
