"""Landlock by its three system calls: which files a process may touch, from now on and for ever.

What the kernel's Landlock cannot see yet (its ABI is younger) stays refused by the system-call filter: sockets of every
kind, signals, device ioctls, emptying a file by path. See `linux/landlock.h`.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""The same numbers on every processor."""
VERSION_FLAG, RULE_PATH_BENEATH = 1, 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
NET_BIND_TCP, NET_CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_SOCKET, SCOPE_SIGNAL = 1, 2

READ = READ_FILE | READ_DIR
OWN = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
"""What a program may do in its own folders: no devices, sockets, pipes or links, and nothing is run from there."""
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV


class LandlockError(OSError):
    """Landlock cannot bind this process; the message says why."""


@dataclass(frozen=True, slots=True)
class Handled:
    """What a ruleset of some ABI decides about."""

    files: int
    network: int
    scoped: int

    def pack(self, abi: int) -> bytes:
        """`struct landlock_ruleset_attr`, no longer than that ABI knows it."""
        if abi < 4:
            return struct.pack("=Q", self.files)
        if abi < 6:
            return struct.pack("=QQ", self.files, self.network)
        return struct.pack("=QQQ", self.files, self.network, self.scoped)


def handled_by(abi: int) -> Handled:
    """What the ABI can refuse. 1: files, 2: moves, 3: truncation, 4: TCP, 5: devices, 6: signals, abstract sockets."""
    files = (1 << 13) - 1
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        files |= right if abi >= since else 0
    network = NET_BIND_TCP | NET_CONNECT_TCP if abi >= 4 else 0
    return Handled(files, network, SCOPE_ABSTRACT_SOCKET | SCOPE_SIGNAL if abi >= 6 else 0)


def _call(what: str, number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise LandlockError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def landlock_abi() -> int:
    """The kernel's Landlock ABI, from 1. Raises LandlockError where it has none, or it is switched off."""
    try:
        return _call("landlock", CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_FLAG))
    except LandlockError as error:
        why = {38: "this kernel has no Landlock (Linux 5.13 or newer has)", 95: "Landlock is switched off"}
        raise LandlockError(error.errno, why.get(error.errno or 0, str(error.strerror))) from None


def restrict(rules: Iterable[tuple[str, int]], *, abi: int | None = None) -> int:
    """Bind this process to the rules `(path, rights)`: what none of them grants is refused. Returns the ABI used.

    Needs no_new_privs. A path that is not there is left out. `abi`: pretend that the kernel knows no more than that.
    Raises LandlockError.
    """
    abi = min(abi, landlock_abi()) if abi else landlock_abi()
    handled = handled_by(abi)
    attributes = handled.pack(abi)
    ruleset = _call(
        "landlock_create_ruleset", CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
    )
    try:
        for path, rights in rules:
            _add_rule(ruleset, path, rights & handled.files)
        _call("landlock_restrict_self", RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return abi


def _add_rule(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = struct.pack("=Qi", rights if os.path.isdir(path) else rights & OF_FILES, fd)
        _call(f"landlock_add_rule {path}", ADD_RULE, ctypes.c_int(ruleset), RULE_PATH_BENEATH, rule, ctypes.c_uint32(0))
    finally:
        os.close(fd)
