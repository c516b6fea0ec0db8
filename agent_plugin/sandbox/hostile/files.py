# ruff: noqa: SIM115  (what is opened here must not open)
"""Attempts on files, processes' memory, devices and the kernel's settings. Each must raise where it is contained."""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from collections.abc import Callable
from typing import Any

planted: dict[str, Any] = {}
"""What the prober put outside: see `agent_plugin.sandbox.planted`."""


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


def opens(*paths: str, mode: str = "rb") -> None:
    """Raises OSError if none of the paths opens."""
    every(*(lambda path=path: open(path, mode) for path in paths))


def read_shadow() -> None:
    open("/etc/shadow").read()


def read_planted_secret() -> None:
    print(open(planted["secret"]).read())


def list_outside() -> None:
    os.listdir(planted["folder"])


def list_the_system() -> None:
    every(
        lambda: see("passwd" in os.listdir("/etc")),
        lambda: see("run" in os.listdir("/var")),
        lambda: see("bin" in os.listdir("/usr")),
        *(lambda path=path: os.listdir(path) for path in ("/home", "/proc", "/sys", "/var/log")),
    )


def list_other_jobs() -> None:
    see(planted["base"] in os.path.realpath("../.."))
    os.listdir("../..")


def environment_of_victim() -> None:
    print(open(f"/proc/{planted['victim']}/environ", "rb").read())


def memory_of_victim() -> None:
    opens(f"/proc/{planted['victim']}/mem", f"/proc/{planted['victim']}/maps")


def memory_of_parent() -> None:
    parent = os.getppid()
    opens(f"/proc/{parent}/mem", f"/proc/{parent}/maps", f"/proc/{parent}/environ", f"/proc/{parent}/cmdline")


def proc_of_others() -> None:
    see(str(planted["victim"]) in os.listdir("/proc"))


def proc_roots() -> None:
    places = ("1/root", "self/root", "thread-self/root", "self/cwd/../../../../..", f"{planted['victim']}/root")
    opens(*(f"/proc/{place}{planted['secret']}" for place in places))


def proc_descriptors() -> None:
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        opens(f"/proc/self/fd/{fd}{planted['secret']}", f"/dev/fd/{fd}{planted['secret']}")
    finally:
        os.close(fd)


def write_outside() -> None:
    open(planted["folder"] + "/left", "w").write("x")


def append_outside() -> None:
    open(planted["file"], "a").write("x")


def write_in_packages() -> None:
    opens(os.__file__, os.path.dirname(os.__file__) + "/left.py", os.path.dirname(stat.__file__) + "/left.py", mode="a")


def write_in_system() -> None:
    opens(*(f"{folder}/left" for folder in ("", "/usr", "/usr/lib", "/etc", "/dev", "/dev/shm", "/var/tmp")), mode="w")


def make_folder_outside() -> None:
    os.mkdir(planted["folder"] + "/left")


def remove_outside() -> None:
    os.unlink(planted["file"])


def rename_out() -> None:
    open("mine", "w").close()
    os.rename("mine", planted["folder"] + "/left")


def rename_in() -> None:
    os.rename(planted["file"], "stolen")


def symlink_out() -> None:
    os.symlink(planted["secret"], "link")


def hardlink_out() -> None:
    os.link(planted["file"], "hard")


def empty_outside() -> None:
    every(
        lambda: os.truncate(planted["file"], 0),
        lambda: os.open(planted["file"], os.O_RDONLY | os.O_TRUNC),
        lambda: os.open(os.__file__, os.O_RDONLY | os.O_TRUNC),
    )


def modes_outside() -> None:
    os.chmod(planted["file"], 0)
    see(stat.S_IMODE(os.stat(planted["file"]).st_mode) == 0)


def owner_outside() -> None:
    os.chown(planted["file"], 12345, 12345)


def times_outside() -> None:
    os.utime(planted["file"], (1, 1))
    see(os.stat(planted["file"]).st_mtime == 1)


def attributes_outside() -> None:
    os.setxattr(planted["file"], "user.mine", b"x")


def climb_by_dots() -> None:
    opens("../" * 40 + "etc/shadow", "../" * 40 + planted["secret"].lstrip("/"))


def climb_by_descriptor() -> None:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        os.open(planted["secret"].lstrip("/"), os.O_RDONLY, dir_fd=root)
    finally:
        os.close(root)


def climb_by_folder() -> None:
    here = os.getcwd()
    os.chdir("/")
    try:
        open(planted["secret"].lstrip("/")).read()
    finally:
        os.chdir(here)


def kernel_settings() -> None:
    names = (
        "proc/sys/kernel/core_pattern",
        "proc/sysrq-trigger",
        "proc/sys/kernel/hostname",
        "proc/self/oom_score_adj",
    )
    opens(*(f"/{name}" for name in (*names, "sys/kernel/uevent_helper", "sys/power/state")), mode="w")


def control_groups() -> None:
    opens(*(f"/sys/fs/cgroup{name}/cgroup.procs" for name in ("", "/pids", "/memory", "/unified")), mode="a")


def set_id_file() -> None:
    fd = os.open("bits", os.O_CREAT | os.O_WRONLY, 0o6755)
    see(os.fstat(fd).st_mode & 0o6000)


def set_id_by_mode() -> None:
    open("bits2", "w").close()
    os.chmod("bits2", 0o6755)
    see(os.stat("bits2").st_mode & 0o6000)


def make_devices() -> None:
    every(
        lambda: os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(254, 0)),
        lambda: os.mknod("memory", stat.S_IFCHR | 0o600, os.makedev(1, 1)),
        lambda: os.mkfifo("pipe"),
    )


def open_devices() -> None:
    names = "mem kmsg port vda sda nvme0n1 kvm fuse loop0 loop-control tty ptmx console net/tun nvidia0 snapshot"
    opens(*(f"/dev/{name}" for name in names.split()))


def type_into_terminal() -> None:
    every(lambda: fcntl.ioctl(0, 0x5412, b"x"), lambda: fcntl.ioctl(1, 0x5412, b"x"))


def host_environment() -> None:
    ours = ("HOME", "LANG", "LC_CTYPE", "MPLBACKEND", "MPLCONFIGDIR", "PWD", "TMPDIR")
    see([name for name in os.environ if name not in ours and not name.endswith("_NUM_THREADS")])


def inherited_descriptors() -> None:
    def kind(fd: int) -> int:
        try:
            return os.fstat(fd).st_mode
        except OSError:
            return 0

    see([fd for fd in range(3, 4096) if kind(fd) and not stat.S_ISREG(kind(fd))])


def standard_input() -> None:
    see(os.read(0, 1))


def call_numbers(numbers: dict[str, int]) -> list[str]:
    """Names of the system calls that were not refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    passed = []
    for name, number in numbers.items():
        result = libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0, 0)
        if result >= 0 or ctypes.get_errno() not in (1, 38):
            passed.append(name)
    return passed


def forbidden_calls() -> None:
    passed = call_numbers(planted["calls"])
    print("not refused:", passed)
    see(passed)
