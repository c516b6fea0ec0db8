"""How long outputs became: the lengths of those that finished, and what they say of one that is under way."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence

import numpy as np

LENGTHS_KEPT = 1024
"""Finished outputs that are remembered."""


class LikelyLengths:
    """What an output under way will come to, by how far it is: see `LengthHistory.likely`."""

    __slots__ = ("_ends", "_lengths")

    def __init__(self, lengths: Sequence[int], ends: Sequence[int | None]) -> None:
        self._lengths = lengths
        self._ends = ends

    def beyond(self, units: int, most: int) -> int:
        """The length of an output that goes on after `units` units, more than that and at most `most` (above it)."""
        end = self._ends[bisect_right(self._lengths, units)]
        if end == 0:
            end = 2 * units
        return most if end is None or end > most else end


class LengthHistory:
    """Lengths of the last outputs that finished, at most `window` of them, and what they say of one under way.

    An output that its request's maximum cut would have gone on: of its length only a least is known.
    """

    def __init__(self, window: int = LENGTHS_KEPT) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self._recent: deque[tuple[int, bool]] = deque()
        self._ordered: list[int] = []
        self._cut: list[int] = []
        """Lengths of those that were cut, in order."""
        self._likely: dict[float, LikelyLengths] = {}
        self.window = window

    def __len__(self) -> int:
        return len(self._ordered)

    def add(self, units: int, is_cut: bool = False) -> None:
        """One more output has finished, after `units` units; the oldest is forgotten where the window is full."""
        if len(self._recent) == self.window:
            oldest, was_cut = self._recent.popleft()
            del self._ordered[bisect_left(self._ordered, oldest)]
            if was_cut:
                del self._cut[bisect_left(self._cut, oldest)]
        self._recent.append((units, is_cut))
        insort(self._ordered, units)
        if is_cut:
            insort(self._cut, units)
        self._likely.clear()

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

    def likely(self, share: float = 0.5) -> LikelyLengths:
        """For each k, the length that `share` (0 to 1) of the outputs that go on after k units do not exceed.

        By the product-limit estimate (Kaplan and Meier, 1958), in which an output that was cut counts among those that
        go on as far as it is known, and not among those that end. Where that estimate stays above `1 - share`, only
        the request's maximum is known.
        """
        known = self._likely.get(share)
        if known is None:
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"share must be between 0 and 1, got {share:g}")
            known = self._likely[share] = self._estimate(share)
        return known

    def _estimate(self, share: float) -> LikelyLengths:
        lengths, counts = np.unique(np.array(self._ordered, dtype=np.int64), return_counts=True)
        num_longer = counts[::-1].cumsum()[::-1]
        cut = np.array(self._cut, dtype=np.int64)
        num_cut = np.searchsorted(cut, lengths, "right") - np.searchsorted(cut, lengths, "left")
        left = np.concatenate(([1.0], np.cumprod(1.0 - (counts - num_cut) / num_longer)))
        at = np.searchsorted(-left[1:], -(1.0 - share) * left - 1e-12)
        ends = [int(lengths[i]) if i < len(lengths) else None for i in at.tolist()]
        if len(lengths) and left[-1] <= 0.0:
            ends[-1] = 0
        return LikelyLengths(lengths.tolist(), ends)
