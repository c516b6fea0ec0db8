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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent_plugin.sandbox import jobs, wire
from agent_plugin.sandbox.cgroups import find_parents
from agent_plugin.sandbox.interpreter import Interpreter, Setup, start_interpreter
from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.pictures import CHECK_SECONDS, start_check
from agent_plugin.sandbox.run import Run
from agent_plugin.sandbox.strays import kill_strays
from agent_plugin.sandbox.trees import Trees

TICK = 0.05
"""Seconds between two looks at clocks and folders while a program runs."""
START_SECONDS = 60.0
"""What an interpreter may take until it is ready."""
TRIES = 3
"""Interpreters in a row that may fail to start before the keeper gives up."""
PR_SET_CHILD_SUBREAPER = 36


class Keeper:
    """The state of one keeper, and its loop."""

    def __init__(self, setup: Setup, control: socket.socket, *, seats: int, warm: int) -> None:
        self.setup, self.control, self.seats, self.warm = setup, control, seats, warm
        self.parent = os.getppid()
        self.selector = selectors.DefaultSelector()
        self.unpacker = wire.Unpacker()
        self.queue: deque[Run] = deque()
        self.idle: list[Interpreter] = []
        """Warming or ready."""
        self.running: dict[int, tuple[Interpreter, Run]] = {}
        self.ends: dict[int, set[int]] = {}
        """By the interpreter's process: its descriptors that have not ended."""
        self.started: dict[int, float] = {}
        self.checking: dict[int, float] = {}
        """Checkers by process, with the time at which they are ended."""
        self.groups: list[Any] = []
        self.fonts: Path | None = None
        self.number = 0
        self.failures = 0
        self.broken: str | None = None
        self.last_words = bytearray()
        self.is_over = False

    def loop(self) -> None:
        """Until the caller is gone."""
        self.selector.register(self.control, selectors.EVENT_READ, self.on_message)
        while not self.is_over:
            self.fill()
            busy = bool(self.running or self.checking or self.groups)
            for key, _ in self.selector.select(TICK if busy else 0.5):
                if self.selector.get_map().get(key.fileobj) is key:  # not ended meanwhile
                    key.data()
            self.on_time()
            if os.getppid() != self.parent:
                return

    # --- the caller -------------------------------------------------------------------------------------------------

    def on_message(self) -> None:
        data = self.control.recv(1 << 20)
        if not data:
            self.is_over = True
            return
        for header, blobs in self.unpacker.feed(data):
            if header["op"] == "cancel":
                self.cancel(header["id"])
                continue
            wall = min(header["wall"] or self.setup.limits.wall, self.setup.limits.wall)
            run = Run(header["id"], dict(zip(header["names"], blobs, strict=True)), wall)
            if self.broken:
                self.send({"op": "broken", "why": self.broken})
            else:
                self.queue.append(run)

    def cancel(self, number: int) -> None:
        for run in [run for run in self.queue if run.id == number]:
            self.queue.remove(run)
            run.reason = "cancelled"
            self.answer(run, {"pictures": [], "notes": []}, [])
        for interpreter, run in self.running.values():
            if run.id == number:
                self.end(interpreter, run, "cancelled")

    def send(self, header: dict[str, Any], blobs: list[bytes] | None = None) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.control.sendall(wire.pack(header, blobs or []))

    # --- interpreters -----------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Start interpreters until enough are there, and give programs to those that are ready."""
        is_listed = self.fonts is not None or not self.setup.preload  # the first interpreter lists the fonts for all
        most = self.seats + self.warm if is_listed else 1
        while not self.broken and len(self.idle) + len(self.running) < most:
            self.start()
        for interpreter in [i for i in self.idle if i.is_ready and not i.is_ended]:
            if not self.queue or len(self.running) >= self.seats:
                break
            self.idle.remove(interpreter)
            self.begin(interpreter, self.queue.popleft())

    def start(self) -> None:
        self.number += 1
        try:
            interpreter = start_interpreter(self.setup, self.number, self.fonts)
        except OSError as error:
            self.last_words[:] = str(error).encode()
            self.count_failure()
            return
        process = interpreter.process
        assert process.stdout is not None
        assert process.stderr is not None
        self.idle.append(interpreter)
        self.started[process.pid] = time.monotonic()
        self.ends[process.pid] = set()
        self.watch(interpreter, interpreter.pidfd, lambda: self.on_exit(interpreter))
        self.watch(interpreter, interpreter.control, lambda: self.on_control(interpreter))
        for pipe, is_error in ((process.stdout, False), (process.stderr, True)):
            os.set_blocking(pipe.fileno(), False)
            self.watch(interpreter, pipe.fileno(), self.output_reader(interpreter, pipe.fileno(), is_error))
        if interpreter.info is not None:
            self.selector.register(interpreter.info, selectors.EVENT_READ, lambda: self.on_info(interpreter))

    def watch(self, interpreter: Interpreter, fd: int, then: Callable[[], None]) -> None:
        self.ends[interpreter.process.pid].add(fd)
        self.selector.register(fd, selectors.EVENT_READ, then)

    def ended(self, interpreter: Interpreter, fd: int) -> None:
        """One of its descriptors has; with the last one nothing of it is left."""
        self.selector.unregister(fd)
        ends = self.ends[interpreter.process.pid]
        ends.discard(fd)
        if not ends:
            self.on_gone(interpreter)

    def on_info(self, interpreter: Interpreter) -> None:
        assert interpreter.info is not None
        self.selector.unregister(interpreter.info)
        interpreter.read_info()

    def on_control(self, interpreter: Interpreter) -> None:
        if not os.read(interpreter.control, 64):
            self.ended(interpreter, interpreter.control)
        elif not interpreter.is_ready:
            interpreter.is_ready = True
            self.failures = 0
            if self.fonts is None and self.setup.preload:
                self.keep_fonts(interpreter)

    def keep_fonts(self, interpreter: Interpreter) -> None:
        """Take over matplotlib's list of fonts, while nothing but our own code has run there."""
        self.fonts = self.setup.base / "fonts.json"
        for path in (interpreter.job.folder / "config").glob("fontlist-*.json"):
            self.fonts = self.setup.base / path.name
            self.fonts.write_bytes(path.read_bytes())
            self.fonts.chmod(0o644)

    def output_reader(self, interpreter: Interpreter, fd: int, is_error: bool) -> Callable[[], None]:
        def read() -> None:
            data = os.read(fd, 1 << 16)
            if not data:
                self.ended(interpreter, fd)
                return
            found = self.running.get(interpreter.process.pid)
            if found is None:
                self.last_words.extend(data)
                del self.last_words[:-2000]
            elif found[1].take_output(data, is_error=is_error, limit=self.setup.limits.output):
                self.end(*found, "too_much_output")

        return read

    def on_exit(self, interpreter: Interpreter) -> None:
        interpreter.reap()
        if self.setup.rung == "none":
            kill_strays({i.process.pid for i in self.idle} | set(self.running) | set(self.checking))
        self.ended(interpreter, interpreter.pidfd)

    # --- programs ---------------------------------------------------------------------------------------------------

    def begin(self, interpreter: Interpreter, run: Run) -> None:
        interpreter.job.put(run.files, interpreter.uid)
        run.given = interpreter.job.measure(1 << 20)
        run.started = time.monotonic()
        self.running[interpreter.process.pid] = (interpreter, run)
        interpreter.go()

    def end(self, interpreter: Interpreter, run: Run, why: Any) -> None:
        if run.why is None and not interpreter.is_ended:
            run.why = why
        interpreter.kill()

    def on_time(self) -> None:
        """What no event tells: deadlines, folders, interpreters that never get ready, groups that wait to go."""
        now = time.monotonic()
        for interpreter, run in list(self.running.values()):
            why = "timed_out" if now >= run.deadline else interpreter.job.over(self.setup.limits, run.given)
            if why is not None:
                self.end(interpreter, run, why)
        for interpreter in self.idle:
            if not interpreter.is_ready and now >= self.started[interpreter.process.pid] + START_SECONDS:
                interpreter.kill()
        for pid, deadline in self.checking.items():
            if now >= deadline:
                os.kill(pid, signal.SIGKILL)
        self.groups = [group for group in self.groups if not group.remove()]

    def on_gone(self, interpreter: Interpreter) -> None:
        """Nothing of it is left but its folder."""
        pid = interpreter.process.pid
        del self.ends[pid], self.started[pid]
        found = self.running.pop(pid, None)
        if found is not None:
            found[1].end(interpreter, self.setup.limits)
        if interpreter.group is not None and not interpreter.group.remove():
            self.groups.append(interpreter.group)
        interpreter.close()
        if found is None:
            self.idle.remove(interpreter)
            self.count_failure()
        else:
            self.look(found[1], list(interpreter.job.pictures(self.setup.limits)))
        jobs.remove(interpreter.job.folder)

    def count_failure(self) -> None:
        self.failures += 1
        if self.failures < TRIES:
            return
        lines = self.last_words.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        self.broken = lines[-1]
        self.queue.clear()
        self.send({"op": "broken", "why": self.broken})

    # --- pictures ---------------------------------------------------------------------------------------------------

    def look(self, run: Run, found: list[tuple[str, bytes]]) -> None:
        new = [(name, data) for name, data in found if run.files.get(name) != data]
        if not new:
            self.answer(run, {"pictures": [], "notes": []}, [])
            return
        pid, fd = start_check(new, self.setup.limits)
        self.checking[pid] = time.monotonic() + 2 * CHECK_SECONDS
        unpacker = wire.Unpacker()
        answers: list[tuple[dict[str, Any], list[bytes]]] = []

        def read() -> None:
            data = os.read(fd, 1 << 20)
            with contextlib.suppress(wire.WireError):
                answers.extend(unpacker.feed(data))
            if data:
                return
            self.selector.unregister(fd)
            os.close(fd)
            os.waitpid(pid, 0)
            del self.checking[pid]
            nothing: tuple[dict[str, Any], list[bytes]]
            nothing = ({"pictures": [], "notes": ["the pictures could not be checked, so none is handed on"]}, [])
            self.answer(run, *(answers[0] if answers else nothing))

        self.selector.register(fd, selectors.EVENT_READ, read)

    def answer(self, run: Run, checked: dict[str, Any], blobs: list[bytes]) -> None:
        header = {
            "op": "result",
            "id": run.id,
            "reason": run.reason,
            "seconds": run.seconds,
            "exit_status": run.exit_status,
            "pictures": checked["pictures"],
            "notes": [*run.notes, *checked["notes"]],
        }
        self.send(header, [bytes(run.stdout), bytes(run.stderr), *blobs])

    def close(self) -> None:
        """End everything and wait until it is gone."""
        for interpreter in [*self.idle, *(pair[0] for pair in self.running.values())]:
            interpreter.kill()
            if not interpreter.is_ended:
                interpreter.reap()
            interpreter.close()
            for _ in range(100):
                if interpreter.group is None or interpreter.group.remove():
                    break
                time.sleep(0.02)
        for pid in self.checking:
            os.kill(pid, signal.SIGKILL)
        kill_strays(set())


def main() -> None:
    """Run a keeper; its settings are the first argument."""
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    own_users = settings["rung"] == "landlock" and os.getuid() == 0
    base, lock = jobs.make_base(settings["folder"], open_to_users=own_users)
    setup = Setup(
        settings["rung"],
        Limits.from_json(settings["limits"]),
        settings["preload"],
        Trees(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings["trees"].items()}),
        settings["bwrap"],
        base,
        settings.get("abi"),
        find_parents() if settings.get("groups", True) else (),
    )
    keeper = Keeper(setup, control, seats=settings["seats"], warm=settings["warm"])

    def stop(*_: object) -> None:
        keeper.is_over = True

    signal.signal(signal.SIGTERM, stop)
    try:
        keeper.loop()
    finally:
        keeper.close()
        jobs.remove(base)
        os.close(lock)
