"""The keeper: a process between the caller and the programs, with one thread, no secrets, and the caller's life.

It keeps interpreters ready, hands programs to them, ends them at their limits, has the pictures checked, and removes
everything. It ends when the caller's socket closes or the caller dies, and takes every program with it.

Started as `python -I -S -c "…; main()" SETTINGS` with the socket as standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from typing import Any

from agent_plugin.sandbox import jobs, wire
from agent_plugin.sandbox.cgroups import find_parents, sweep_groups
from agent_plugin.sandbox.interpreter import Interpreter, Setup
from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.nursery import Nursery
from agent_plugin.sandbox.pictures import Check
from agent_plugin.sandbox.result import Reason
from agent_plugin.sandbox.run import Run
from agent_plugin.sandbox.trees import Trees

TICK = 0.05
"""Seconds between two looks at clocks and folders while a program runs."""
IDLE_TICK = 0.5
"""And between two looks at the caller while none does."""
PR_SET_CHILD_SUBREAPER = 36


class Keeper:
    """The programs of one keeper, and its loop."""

    def __init__(self, setup: Setup, control: socket.socket, *, seats: int, warm: int) -> None:
        self.setup, self.control, self.seats, self.warm = setup, control, seats, warm
        self.parent = os.getppid()
        self.selector = selectors.DefaultSelector()
        self.nursery = Nursery(setup, self.selector, self)
        self.unpacker = wire.Unpacker()
        self.queue: deque[Run] = deque()
        self.running: dict[int, tuple[Interpreter, Run]] = {}
        self.checks: list[Check] = []
        self.is_over = False

    def loop(self) -> None:
        """Until the caller is gone."""
        self.selector.register(self.control, selectors.EVENT_READ, self.on_message)
        while not self.is_over and os.getppid() == self.parent:
            self.fill()
            busy = bool(self.running or self.checks or self.nursery.groups)
            for key, _ in self.selector.select(TICK if busy else IDLE_TICK):
                if self.selector.get_map().get(key.fileobj) is key:  # not ended meanwhile
                    key.data()
            self.on_time()

    def fill(self) -> None:
        """Keep interpreters ready, and give them to the programs that wait."""
        self.nursery.fill(self.seats + self.warm)
        if self.nursery.broken:
            self.queue.clear()
            self.send({"op": "broken", "why": self.nursery.broken})
            self.is_over = not self.running
        while self.queue and len(self.running) < self.seats:
            interpreter = self.nursery.take()
            if interpreter is None:
                return
            self.begin(interpreter, self.queue.popleft())

    # --- the caller -------------------------------------------------------------------------------------------------

    def on_message(self) -> None:
        data = self.control.recv(1 << 20)
        if not data:
            self.is_over = True
        for header, blobs in self.unpacker.feed(data):
            if header["op"] == "cancel":
                self.cancel(header["id"])
                continue
            wall = min(header["wall"] or self.setup.limits.wall, self.setup.limits.wall)
            self.queue.append(Run(header["id"], dict(zip(header["names"], blobs, strict=True)), wall))

    def cancel(self, number: int) -> None:
        for run in [run for run in self.queue if run.id == number]:
            self.queue.remove(run)
            run.reason = "cancelled"
            self.answer(run, {"pictures": [], "notes": []}, [])
        for interpreter, run in self.running.values():
            if run.id == number:
                self.end(interpreter, run, "cancelled")

    def send(self, header: dict[str, Any], blobs: list[bytes] | None = None) -> None:
        try:
            self.control.sendall(wire.pack(header, blobs or []))
        except OSError:
            self.is_over = True

    def answer(self, run: Run, checked: dict[str, Any], blobs: list[bytes]) -> None:
        self.send(
            run.header() | {"pictures": checked["pictures"], "notes": [*run.notes, *checked["notes"]]},
            [bytes(run.stdout), bytes(run.stderr), *blobs],
        )

    # --- programs ---------------------------------------------------------------------------------------------------

    def begin(self, interpreter: Interpreter, run: Run) -> None:
        self.running[interpreter.process.pid] = (interpreter, run)
        run.started = time.monotonic()
        try:
            interpreter.job.put(run.files, interpreter.uid)
        except (OSError, ValueError) as error:
            run.notes.append(f"its files could not be written: {error}")
            self.end(interpreter, run, "failed")
            return
        run.given = interpreter.job.measure(1 << 20)
        run.started = time.monotonic()
        interpreter.go()

    def end(self, interpreter: Interpreter, run: Run, why: Reason) -> None:
        if run.why is None and not interpreter.is_ended:
            run.why = why
        interpreter.kill()

    def on_output(self, interpreter: Interpreter, data: bytes, *, is_error: bool) -> None:
        run = self.running[interpreter.process.pid][1]
        if run.take_output(data, is_error=is_error, limit=self.setup.limits.output):
            self.end(interpreter, run, "too_much_output")

    def on_time(self) -> None:
        """What no event tells: deadlines, folders, interpreters that never get ready, groups that wait to go."""
        now = time.monotonic()
        for interpreter, run in list(self.running.values()):
            why = "timed_out" if now >= run.deadline else interpreter.job.over(self.setup.limits, run.given)
            if why is not None:
                self.end(interpreter, run, why)
        for check in self.checks:
            check.on_time(now)
        self.nursery.on_time(now)

    def on_end(self, interpreter: Interpreter) -> None:
        run = self.running[interpreter.process.pid][1]
        run.end(interpreter, self.setup.limits, interpreter.job.over(self.setup.limits, run.given))
        found = interpreter.job.pictures(self.setup.limits)
        run.pictures = [(name, data) for name, data in found if run.files.get(name) != data]

    def on_gone(self, interpreter: Interpreter) -> None:
        _, run = self.running.pop(interpreter.process.pid)
        if not run.pictures:
            self.answer(run, {"pictures": [], "notes": []}, [])
            return
        check = Check(run.pictures, self.setup.limits)
        self.checks.append(check)
        self.nursery.others.add(check.pid)
        self.selector.register(check.fd, selectors.EVENT_READ, lambda: self.on_check(check, run))

    def on_check(self, check: Check, run: Run) -> None:
        if check.read():
            self.selector.unregister(check.fd)
            self.checks.remove(check)
            check.close()
            self.nursery.others.discard(check.pid)
            self.answer(run, *check.answer)

    def close(self) -> None:
        """End everything and wait until it is gone."""
        for check in self.checks:
            check.close()
        self.nursery.close()


def main() -> None:
    """Run a keeper; its settings are the first argument."""
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    trees = settings["trees"]
    base, lock = jobs.make_base(settings["folder"], open_to_users=settings["rung"] == "landlock" and os.getuid() == 0)
    setup = Setup(
        rung=settings["rung"],
        limits=Limits.from_json(settings["limits"]),
        preload=settings["preload"],
        trees=Trees(trees["executable"], tuple(trees["paths"]), tuple(trees["readable"])),
        bwrap=settings["bwrap"],
        base=base,
        abi=settings.get("abi"),
        parents=find_parents() if settings.get("groups", True) else (),
    )
    sweep_groups(setup.parents)
    keeper = Keeper(setup, control, seats=settings["seats"], warm=settings["warm"])

    def stop(*_: object) -> None:
        keeper.is_over = True

    signal.signal(signal.SIGTERM, stop)
    try:
        keeper.loop()
    finally:
        keeper.close()
        with contextlib.suppress(FileNotFoundError):
            jobs.remove(base)
        os.close(lock)
