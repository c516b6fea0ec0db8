"""Attempts on the network and on other processes. Each must raise where it is contained."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import resource
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

planted: dict[str, Any] = {}
"""What the prober put outside: see `agent_plugin.sandbox.planted`."""
libc = ctypes.CDLL(None, use_errno=True)


def every(*attempts: Callable[[], object]) -> None:
    """Raises OSError if all attempts fail: then none got anywhere."""
    for attempt in attempts:
        try:
            attempt()
        except (OSError, ValueError, ImportError, AttributeError):
            continue
        return
    raise OSError("refused, all of them")


def see(condition: object) -> None:
    """Raises OSError if there is nothing to see."""
    if not condition:
        raise OSError("nothing to see")


def call(x86_64: int, aarch64: int, *arguments: object) -> None:
    """A system call by its number; raises OSError if it fails."""
    number = x86_64 if platform.machine() == "x86_64" else aarch64
    see(libc.syscall(ctypes.c_long(number), *arguments) >= 0)


def tcp_connect() -> None:
    socket.create_connection(("127.0.0.1", planted["port"]), 1)


def tcp_listen() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()


def udp_send() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", planted["port"]))


def unix_connect() -> None:
    socket.socket(socket.AF_UNIX).connect(planted["socket"])


def abstract_connect() -> None:
    socket.socket(socket.AF_UNIX).connect("\0" + planted["abstract"])


def netlink() -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


def raw_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)


def packet_socket() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)


def every_family() -> None:
    every(*(lambda family=family: call(41, 198, family, 1, 0) for family in range(1, 46)))


def look_up_a_name() -> None:
    socket.getaddrinfo("example.org", 80)


def fetch_a_page() -> None:
    urllib.request.urlopen(f"http://127.0.0.1:{planted['port']}/", timeout=1)


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def new_namespaces() -> None:
    def clone(flags: int) -> None:
        call(56, 220, ctypes.c_ulong(flags | 17), 0, 0, 0, 0)

    every(*(lambda flag=flag: clone(flag) for flag in (0, 0x10000000, 0x20000000, 0x40000000, 0x20000)))


def daemon_by_shell() -> None:
    subprocess.Popen(["/bin/sh", "-c", "sleep 300 &"], start_new_session=True)


def execute_others() -> None:
    paths = ("/bin/sh", "/usr/bin/id", "/bin/busybox", sys.executable, os.path.realpath("/proc/self/exe"))
    every(*(lambda path=path: os.execv(path, [path]) for path in paths))


def execute_set_id() -> None:
    paths = ("/usr/bin/su", "/bin/mount", "/usr/bin/passwd", "/usr/bin/sudo", "/usr/lib/openssh/ssh-keysign")
    every(*(lambda path=path: os.execv(path, [path]) for path in paths))


def execute_the_loader() -> None:
    paths = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
    every(*(lambda path=path: os.execv(path, [path, "--version"]) for path in paths))


def execute_from_memory() -> None:
    fd = os.memfd_create("x")
    os.write(fd, b"#!/bin/sh\n")
    os.execve(fd, ["x"], {})


def execute_own_file() -> None:
    with open("x.sh", "w") as file:
        file.write("#!/bin/sh\n")
    os.chmod("x.sh", 0o755)
    os.execv("./x.sh", ["x.sh"])


def become_root() -> None:
    every(lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0]))


def ptrace_victim() -> None:
    see(libc.ptrace(16, planted["victim"], 0, 0) == 0)


def read_memory_of_victim() -> None:
    buffer = ctypes.create_string_buffer(64)
    call(310, 270, planted["victim"], buffer, 1, buffer, 1, 0)


def kill_victim() -> None:
    os.kill(planted["victim"], 9)


def kill_parent() -> None:
    os.kill(os.getppid(), 9)


def kill_everyone() -> None:
    parent = os.getppid()
    every(lambda: os.kill(-1, 9), lambda: os.kill(0, 9), lambda: os.kill(1, 9), lambda: os.killpg(parent, 9))


def signal_by_descriptor() -> None:
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(reading, 8, planted["victim"])  # F_SETOWN
        fcntl.fcntl(reading, 10, 9)  # F_SETSIG
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
        os.write(writing, b"x")
    finally:
        os.close(reading)
        os.close(writing)


def push_victim_around() -> None:
    victim = planted["victim"]
    every(
        lambda: os.setpriority(os.PRIO_PROCESS, victim, 19),
        lambda: os.sched_setaffinity(victim, {0}),
        lambda: resource.prlimit(victim, resource.RLIMIT_CPU, (1, 1)),
    )


def raise_limits() -> None:
    names = ("AS", "DATA", "FSIZE", "NOFILE", "CPU", "CORE", "MEMLOCK")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    kinds = [getattr(resource, f"RLIMIT_{name}") for name in names]
    every(*(lambda kind=kind: resource.setrlimit(kind, unlimited) for kind in kinds))


def outlive_the_keeper() -> None:
    see(libc.prctl(1, 0, 0, 0, 0) == 0)
