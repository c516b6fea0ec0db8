"""The client: a process of its own that sends each request at its time, whatever the engine is doing."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple, Self

START_DELAY = 0.05
"""Seconds between the word to start and the origin of all offsets."""
STARTUP_TIMEOUT = 60.0


class Job(NamedTuple):
    """A request that is to be sent: at which offset from the start, in seconds, and with what in it."""

    request_id: str
    offset: float
    payload: Any


class Sent(NamedTuple):
    """A request as it arrives at the engine; `arrival` is the wall clock (time.time()) when the client sent it."""

    request_id: str
    arrival: float
    payload: Any


class ClientDied(RuntimeError):
    """The client process ended before it had sent everything."""


def _play(queue: Connection, jobs: Sequence[Job]) -> None:
    """The client process: wait for the origin, then send each job at its offset; None marks the end."""
    with contextlib.suppress(EOFError, ConnectionError):  # the engine's process is gone: nobody to send to
        queue.send("ready")
        origin: float = queue.recv()
        for request_id, offset, payload in jobs:
            delay = origin + offset - time.time()
            if delay > 0:
                time.sleep(delay)
            queue.send(Sent(request_id, time.time(), payload))
        queue.send(None)


class Client:
    """Runs the client process and receives what it sends. Context manager: leaving it ends the process."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        context = multiprocessing.get_context("spawn")
        self._queue, theirs = context.Pipe()
        self._process = context.Process(target=_play, args=(theirs, jobs), daemon=True)
        self.is_done = False
        # Ctrl-C goes to the whole process group; it is the engine's process that acts on it. A blocked signal
        # stays blocked in the child.
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
        if not self._queue.poll(STARTUP_TIMEOUT):
            raise ClientDied(f"the client process did not start within {STARTUP_TIMEOUT:g} s")
        self._receive_one()
        origin = time.time() + START_DELAY
        self._queue.send(origin)
        return origin

    def receive(self, timeout: float = 0.0) -> list[Sent]:
        """What has arrived since the last call; waits up to `timeout` seconds for the first. Raises ClientDied."""
        arrived: list[Sent] = []
        while not self.is_done and self._queue.poll(0.0 if arrived else timeout):
            message = self._receive_one()
            if message is None:
                self.is_done = True
            else:
                arrived.append(message)
        return arrived

    def _receive_one(self) -> Any:
        try:
            return self._queue.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(1.0)
            code = self._process.exitcode
            raise ClientDied(f"the client process ended early (exit code {code})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.close()
        if not self.is_done:
            self._process.kill()
        self._process.join()
