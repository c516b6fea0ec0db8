"""The serving loop: take what the client sent, run a step, account for what ended; until all is done."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from exp.harness.client import Client
from neustream.request import Request

IDLE_WAIT = 0.1
"""Seconds that an idle engine waits for an arrival before it looks whether it was interrupted."""


class Server(Protocol):
    """An engine that serves one setting."""

    def submit(self, request_id: str, arrival: float, payload: Any) -> None:
        """Take a request that the client sent at `arrival` (time.time())."""
        ...

    def step(self) -> list[Request]:
        """Run one step; the requests that ended in it (finished, rejected, failed), their outcome set."""
        ...

    def abort_all(self) -> list[Request]:
        """Withdraw whatever has not ended; returns those requests, their outcome set."""
        ...

    @property
    def num_unfinished(self) -> int:
        """Requests that were submitted and have not ended."""
        ...


class Interrupt:
    """Turns the first SIGINT or SIGTERM into a flag, so that a step is never cut in two; the second one raises.

    Context manager; handlers are put back at the end.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """As a shell reports it: 130 for Ctrl-C."""
        return 0 if self.signal is None else 128 + self.signal

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print("\ninterrupted: finishing this step, then writing what there is", file=sys.stderr)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def serve(
    server: Server,
    client: Client,
    on_end: Callable[[Request], None],
    interrupt: Interrupt,
    on_arrival: Callable[[str, float], None] | None = None,
) -> None:
    """Serve until the client has sent everything and all of it has ended, or `interrupt` was raised.

    `on_end` gets every submitted request once; what had not ended when the loop was left is aborted first,
    so N requests in are N accounted for, also after an error of the engine or of the client.
    """
    try:
        while not (client.is_done and server.num_unfinished == 0) and interrupt.signal is None:
            for request_id, arrival, payload in client.receive(0.0 if server.num_unfinished else IDLE_WAIT):
                if on_arrival is not None:
                    on_arrival(request_id, arrival)
                server.submit(request_id, arrival, payload)
            if server.num_unfinished:
                for request in server.step():
                    on_end(request)
    finally:
        for request in server.abort_all():
            on_end(request)
