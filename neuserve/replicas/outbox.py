"""A box of numbered messages for one reader, who asks for what is new and so says what has arrived."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any


class Outbox:
    """Kept on one event loop; any thread may put. A message stays until the reader asks for what comes after it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Any] = deque()
        self._num_gone = 0
        """Messages that the reader has; the first of `_items` has the next number."""
        self._news = asyncio.Event()
        self._lock = threading.Lock()
        self.is_closed = False

    def __len__(self) -> int:
        """Messages that the reader has not said it has."""
        return len(self._items)

    def put(self, items: Iterable[Any]) -> None:
        """Add messages. From any thread."""
        with self._lock:
            self._items.extend(items)
        self._wake()

    def close(self) -> None:
        """Nobody writes any more: readers get what there is, then None. From any thread."""
        self.is_closed = True
        self._wake()

    async def take(self, after: int, patience: float | None = None) -> tuple[int, list[Any]] | None:
        """`(number of the last, messages)` beyond number `after`, as soon as there are any.

        With `patience` the list is empty if that many seconds bring none. None once the box is closed and empty.
        """
        self.forget(after)
        while True:
            self._news.clear()
            with self._lock:
                if self._items:
                    return self._num_gone + len(self._items), list(self._items)
            if self.is_closed:
                return None
            try:
                await asyncio.wait_for(self._news.wait(), patience)
            except TimeoutError:
                return self._num_gone, []

    def forget(self, after: int) -> None:
        """The reader has the messages up to number `after`."""
        with self._lock:
            while self._num_gone < after and self._items:
                self._items.popleft()
                self._num_gone += 1

    def items(self) -> list[Any]:
        """The messages that the reader has not said it has."""
        with self._lock:
            return list(self._items)

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)
