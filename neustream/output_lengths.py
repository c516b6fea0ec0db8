"""How long outputs became: the lengths of those that finished, and what they say of one that is under way."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import deque

LENGTHS_KEPT = 1024
"""Finished outputs that are remembered."""


class LengthHistory:
    """Lengths of the last outputs that finished, at most `window` of them, and what they say of one under way."""

    def __init__(self, window: int = LENGTHS_KEPT) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self._recent: deque[int] = deque()
        self._ordered: list[int] = []
        self.window = window

    def __len__(self) -> int:
        return len(self._ordered)

    def add(self, units: int) -> None:
        """One more output has finished, after `units` units; the oldest is forgotten where the window is full."""
        if len(self._recent) == self.window:
            oldest = self._recent.popleft()
            del self._ordered[bisect_right(self._ordered, oldest) - 1]
        self._recent.append(units)
        insort(self._ordered, units)

    def quantile(self, share: float, beyond: int = 0) -> int | None:
        """The length that `share` (0 to 1) of the outputs longer than `beyond` do not exceed, by the nearest rank.

        None where no output was longer than `beyond`: then only the request's maximum is known.
        """
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share must be between 0 and 1, got {share:g}")
        first = bisect_right(self._ordered, beyond)
        num = len(self._ordered) - first
        return self._ordered[first + max(math.ceil(share * num), 1) - 1] if num else None

    def mean(self, beyond: int = 0) -> float | None:
        """Mean length of the outputs longer than `beyond`; None where there was none."""
        longer = self._ordered[bisect_right(self._ordered, beyond) :]
        return sum(longer) / len(longer) if longer else None
