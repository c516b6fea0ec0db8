"""The client: a process of its own that sends each request at its time, whatever the engine is doing.

Two threads: one waits for each request's time and stamps it, the other pushes what is stamped through the pipe. A pipe
that is full, because the engine is in a long step, holds up the second thread only.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from neustream.driver import Ask

START_DELAY = 0.05
"""Seconds between the word to start and the origin of all offsets."""
STARTUP_TIMEOUT = 60.0


class ClientDied(RuntimeError):
    """The client process ended before it had sent everything."""


def _play(pipe: Connection, asks: Sequence[Ask]) -> None:
    """The client process: wait for the origin, then send each ask at its time; None marks the end."""
    with contextlib.suppress(EOFError, ConnectionError):  # the engine's process is gone: nobody to send to
        pipe.send("ready")
        origin: float = pipe.recv()
        stamped: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        is_gone = threading.Event()
        sender = threading.Thread(target=_push, args=(pipe, stamped, is_gone), daemon=True)
        sender.start()
        for ask in asks:
            delay = origin + ask.arrival - time.time()
            if is_gone.wait(max(delay, 0.0)):
                return
            stamped.put(ask._replace(arrival=time.time()))
        stamped.put(None)
        sender.join()


def _push(pipe: Connection, stamped: queue.SimpleQueue[Ask | None], is_gone: threading.Event) -> None:
    """Send what is stamped, in order, until the end; `is_gone` says that nobody receives any more."""
    try:
        ask: Any = True
        while ask is not None:
            ask = stamped.get()
            pipe.send(ask)
    except (EOFError, OSError):
        is_gone.set()


class Client:
    """Runs the client process and receives what it sends. Context manager: leaving it ends the process.

    The `arrival` of the asks that are given is the offset from the start, by rising value; that of those received
    is the wall clock (time.time()) when the client sent them.
    """

    def __init__(self, asks: Sequence[Ask]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_play, args=(theirs, asks), daemon=True)
        self.is_done = False
        # Ctrl-C goes to the whole process group; it is the engine's process that acts on it. A blocked signal
        # stays blocked in the child. Starting Python's resource tracker unblocks both, so that it must run already.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def start(self) -> float:
        """Wait until the client is ready and set it off; returns the origin of the offsets on the wall clock."""
        if not self._pipe.poll(STARTUP_TIMEOUT):
            raise ClientDied(f"the client process did not start within {STARTUP_TIMEOUT:g} s")
        self._receive_one()
        origin = time.time() + START_DELAY
        self._pipe.send(origin)
        return origin

    def receive(self, timeout: float = 0.0) -> list[Ask]:
        """What has arrived since the last call; waits up to `timeout` seconds for the first. Raises ClientDied."""
        arrived: list[Ask] = []
        while not self.is_done and self._pipe.poll(0.0 if arrived else timeout):
            message = self._receive_one()
            if message is None:
                self.is_done = True
            else:
                arrived.append(message)
        return arrived

    def _receive_one(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(1.0)
            code = self._process.exitcode
            raise ClientDied(f"the client process ended early (exit code {code})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        if not self.is_done:
            self._process.kill()
        self._process.join()
