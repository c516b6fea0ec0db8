"""The two schedules by which requests of one loop may be served: whether all of them are in time."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def meets_together(steps: Floats, margins: Floats, tails: Floats, curve: Floats) -> bool:
    """Everybody in every step, in order of their steps: the batch shrinks, and steps get faster, as they finish."""
    segments = steps.copy()
    segments[1:] -= steps[:-1]
    segments *= curve[len(steps) : 0 : -1]
    segments += tails
    ends = np.add.accumulate(segments)
    ends -= tails
    return not np.count_nonzero(ends > margins)


def meets_in_turns(due: Floats, tails: Floats, latest: Floats, size: int) -> bool:
    """Batches of one size b, taken in turns by least laxity: b slots, as b processors with preemption.

    Up to a time t they must receive the work whose deadline has come and the work that is too much
    for what remains afterwards: `Σ (t − latest start)⁺ − Σ (t − margin)⁺`, of which b slots do b·t.
    `due` are the margins in order, with their `tails`; `latest` are the latest starts in any order, and get sorted.
    """
    latest.sort()
    latest_sums = np.zeros(len(due) + 1)
    np.add.accumulate(latest, out=latest_sums[1:])
    num_late = latest.searchsorted(due)
    must = (num_late - _counts(len(due))) * due - latest_sums[num_late] + np.add.accumulate(due)
    return not np.count_nonzero(must > float(size) * (due - np.add.accumulate(tails) + tails))


@lru_cache(maxsize=1024)
def _counts(count: int) -> Floats:
    return np.arange(1.0, count + 1)
