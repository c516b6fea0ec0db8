"""Programs that try to use up the machine, or never to end. Each must be ended at a limit, or fail."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import sys
import threading
import time

MIB = 1 << 20


def endless_loop() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(1000)


def ignore_signals() -> None:
    for number in range(1, 65):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    endless_loop()


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def close_everything() -> None:
    os.closerange(0, 1024)
    endless_loop()


def fork_bomb() -> None:
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.001)


def daemon() -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)


def thread_bomb() -> None:
    threading.stack_size(32768)
    started = 0
    while True:
        try:
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
            started += 1
        except RuntimeError:
            print(started, "threads", flush=True)
            time.sleep(1000)


def thread_that_stays() -> None:
    threading.Thread(target=time.sleep, args=(1000,)).start()


def memory_bomb() -> None:
    kept = []
    while True:
        kept.append(bytearray(b"x") * (32 * MIB))


def shared_memory_bomb() -> None:
    kept = []
    while True:
        kept.append(mmap.mmap(-1, 64 * MIB))
        for at in range(0, 64 * MIB, 4096):
            kept[-1][at] = 1


def recursion() -> None:
    sys.setrecursionlimit(1 << 30)

    def deeper() -> None:
        deeper()

    deeper()


def one_big_file() -> None:
    with open("big", "wb") as file:
        while True:
            file.write(b"x" * MIB)


def disk_flood() -> None:
    number = 0
    while True:
        number += 1
        with open(f"file{number}", "wb") as file:
            file.write(b"x" * 4 * MIB)


def disk_flood_elsewhere() -> None:
    number = 0
    while True:
        number += 1
        with open(f"{os.environ['TMPDIR']}/file{number}", "wb") as file:
            file.write(b"x" * 4 * MIB)


def many_files() -> None:
    number = 0
    while True:
        number += 1
        open(f"file{number}", "w").close()


def deep_folders() -> None:
    while True:
        os.mkdir("d" * 200)
        os.chdir("d" * 200)


def closed_folders() -> None:
    for number in range(1000):
        os.mkdir(f"d{number}")
        os.mkdir(f"d{number}/inner", 0)
    endless_loop()


def output_flood() -> None:
    while True:
        print("x" * 10000)


def error_flood() -> None:
    while True:
        print("x" * 10000, file=sys.stderr)


def descriptor_flood() -> None:
    kept = []
    while True:
        kept.append(os.pipe())


def crash() -> None:
    ctypes.string_at(0)


def old_instructions() -> None:
    """getpid by the 32-bit door (int 0x80), which the filter must not leave open. x86_64 only."""
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(bytes.fromhex("b814000000cd80c3"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    print("ESCAPED", ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def x32_call() -> None:
    """getpid by the x32 door. x86_64 only."""
    number = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(0x40000000 + 39))
    print("ESCAPED" if number > 0 else "refused", number)
