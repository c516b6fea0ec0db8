"""The serving loop: take what the client sent, run a step, account for what ended; until all is done."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from exp.harness.client import Client
from neustream.driver import Ask, Driver, Observer

IDLE_WAIT = 0.1
"""Seconds that an idle engine waits for an arrival before it looks whether it was interrupted."""
BLINK = 0.0005
"""Seconds that an engine with nothing to run waits at least before it is asked again."""


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
    driver: Driver,
    client: Client,
    observer: Observer,
    interrupt: Interrupt,
    on_arrival: Callable[[Ask], None] | None = None,
) -> None:
    """Serve until the client has sent everything and all of it has ended, or `interrupt` was raised.

    `observer` hears of every step, and of the end of every submitted request once. What had not ended when the loop
    was left is aborted first, so N requests in are N accounted for, also after an error of the engine or the client.
    """
    patience = IDLE_WAIT
    try:
        while not (client.is_done and driver.num_unfinished == 0) and interrupt.signal is None:
            for ask in client.receive(patience):
                if on_arrival is not None:
                    on_arrival(ask)
                driver.submit(ask)
            patience = _step(driver, observer) if driver.num_unfinished else IDLE_WAIT
    finally:
        driver.abort_all("the run ended before it did")
        for request in driver.take_ended():
            observer.on_end(request)


def _step(driver: Driver, observer: Observer) -> float:
    """Run one step and tell of it; returns how many seconds to wait for arrivals before the next."""
    record = driver.step()
    if record is not None:
        observer.on_step(record)
    ended = driver.take_ended()
    for request in ended:
        observer.on_end(request)
    if ended or (record is not None and record.request_ids):
        return 0.0
    if driver.wake is not None:
        return min(max(driver.wake - time.time(), BLINK), IDLE_WAIT)
    return IDLE_WAIT if record is None else BLINK  # with a record: a step of the engine that moved nobody
