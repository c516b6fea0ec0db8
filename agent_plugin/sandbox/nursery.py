"""Interpreters from their start to their end: warming, ready, taken, gone."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from agent_plugin.sandbox import jobs
from agent_plugin.sandbox.cgroups import Group
from agent_plugin.sandbox.interpreter import Interpreter, Setup, start_interpreter
from agent_plugin.sandbox.strays import kill_strays

START_SECONDS = 60.0
"""What an interpreter may take until it is ready."""
TRIES = 3
"""Interpreters in a row that may fail to start before no more are started."""


class Taker(Protocol):
    """Who takes interpreters: is told what they print and when they are gone."""

    def on_output(self, interpreter: Interpreter, data: bytes, *, is_error: bool) -> None:
        """It printed this."""
        ...

    def on_end(self, interpreter: Interpreter) -> None:
        """No process of it is left; its folder is, for the time of this call."""
        ...

    def on_gone(self, interpreter: Interpreter) -> None:
        """Nothing of it is left."""
        ...


class Nursery:
    """Starts interpreters and follows them on the selector; those that are ready can be taken."""

    def __init__(self, setup: Setup, selector: selectors.BaseSelector, taker: Taker) -> None:
        self.setup, self.selector, self.taker = setup, selector, taker
        self.idle: list[Interpreter] = []
        """Warming or ready."""
        self.taken: list[Interpreter] = []
        self.groups: list[Group] = []
        """Of interpreters that are gone; the kernel has not let go of them."""
        self.others: set[int] = set()
        """Children of this process that are no interpreters, and no strays either."""
        self.broken: str | None = None
        """Why no more interpreters are started, if so."""
        self._ends: dict[int, set[int]] = {}
        """By the interpreter's process: its descriptors that have not ended."""
        self._started: dict[int, float] = {}
        self._fonts: Path | None = None
        self._number = 0
        self._failures = 0
        self._last_words = bytearray()

    def fill(self, most: int) -> None:
        """Start interpreters until there are so many, taken ones included."""
        is_listed = self._fonts is not None or not self.setup.preload
        most = most if is_listed else 1  # the first one lists the fonts for all
        while not self.broken and len(self.idle) + len(self.taken) < most:
            self._start()

    def take(self) -> Interpreter | None:
        """One that is ready, if any."""
        for interpreter in self.idle:
            if interpreter.is_ready and not interpreter.is_ended:
                self.idle.remove(interpreter)
                self.taken.append(interpreter)
                return interpreter
        return None

    def on_time(self, now: float) -> None:
        """End those that never get ready; let go of groups."""
        for interpreter in self.idle:
            if not interpreter.is_ready and now >= self._started[interpreter.process.pid] + START_SECONDS:
                interpreter.kill()
        self.groups = [group for group in self.groups if not group.remove()]

    def close(self) -> None:
        """End all, and wait until they are gone."""
        for interpreter in [*self.idle, *self.taken]:
            interpreter.kill()
            if not interpreter.is_ended:
                interpreter.reap()
            interpreter.close()
            if interpreter.group is not None:
                self.groups.append(interpreter.group)
        kill_strays(set())
        for _ in range(100):
            self.on_time(0.0)
            if not self.groups:
                break
            time.sleep(0.02)

    def _start(self) -> None:
        self._number += 1
        try:
            interpreter = start_interpreter(self.setup, self._number, self._fonts)
        except OSError as error:
            self._last_words[:] = str(error).encode()
            self._count_failure()
            return
        process = interpreter.process
        assert process.stdout is not None
        assert process.stderr is not None
        self.idle.append(interpreter)
        self._started[process.pid] = time.monotonic()
        self._ends[process.pid] = set()
        self._watch(interpreter, interpreter.pidfd, lambda: self._on_exit(interpreter))
        self._watch(interpreter, interpreter.control, lambda: self._on_control(interpreter))
        for fd, is_error in ((process.stdout.fileno(), False), (process.stderr.fileno(), True)):
            os.set_blocking(fd, False)
            self._watch(interpreter, fd, self._reader(interpreter, fd, is_error))
        if interpreter.info is not None:
            self.selector.register(interpreter.info, selectors.EVENT_READ, lambda: self._on_info(interpreter))

    def _watch(self, interpreter: Interpreter, fd: int, then: Callable[[], None]) -> None:
        self._ends[interpreter.process.pid].add(fd)
        self.selector.register(fd, selectors.EVENT_READ, then)

    def _ended(self, interpreter: Interpreter, fd: int) -> None:
        """One of its descriptors has; with the last one nothing of it is left."""
        self.selector.unregister(fd)
        ends = self._ends[interpreter.process.pid]
        ends.discard(fd)
        if not ends:
            self._on_gone(interpreter)

    def _on_info(self, interpreter: Interpreter) -> None:
        assert interpreter.info is not None
        self.selector.unregister(interpreter.info)
        interpreter.read_info()

    def _on_control(self, interpreter: Interpreter) -> None:
        if not os.read(interpreter.control, 64):
            self._ended(interpreter, interpreter.control)
        elif not interpreter.is_ready:
            interpreter.is_ready = True
            self._failures = 0
            if self._fonts is None and self.setup.preload:
                self._keep_fonts(interpreter)

    def _keep_fonts(self, interpreter: Interpreter) -> None:
        """Take over matplotlib's list of fonts, while nothing but our own code has run there."""
        for path in (interpreter.job.folder / "config").glob("fontlist-*.json"):
            self._fonts = self.setup.base / path.name
            self._fonts.write_bytes(path.read_bytes())

    def _reader(self, interpreter: Interpreter, fd: int, is_error: bool) -> Callable[[], None]:
        def read() -> None:
            data = os.read(fd, 1 << 16)
            if not data:
                self._ended(interpreter, fd)
            elif interpreter in self.taken:
                self.taker.on_output(interpreter, data, is_error=is_error)
            else:
                self._last_words.extend(data)
                del self._last_words[:-2000]

        return read

    def _on_exit(self, interpreter: Interpreter) -> None:
        interpreter.reap()
        if self.setup.rung == "none":
            kill_strays({other.process.pid for other in (*self.idle, *self.taken)} | self.others)
        self._ended(interpreter, interpreter.pidfd)

    def _on_gone(self, interpreter: Interpreter) -> None:
        del self._ends[interpreter.process.pid], self._started[interpreter.process.pid]
        was_taken = interpreter in self.taken
        if was_taken:
            self.taken.remove(interpreter)
            self.taker.on_end(interpreter)
        else:
            self.idle.remove(interpreter)
            self._count_failure()
        if interpreter.info is not None:
            self.selector.unregister(interpreter.info)
        if interpreter.group is not None and not interpreter.group.remove():
            self.groups.append(interpreter.group)
        interpreter.close()
        jobs.remove(interpreter.job.folder)
        if was_taken:
            self.taker.on_gone(interpreter)

    def _count_failure(self) -> None:
        self._failures += 1
        if self._failures >= TRIES:
            lines = self._last_words.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            self.broken = lines[-1]
