"""How sure a comparison is: intervals over windows or seeds, paired where two policies ran on the same ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, or a ratio, and where it lies with the confidence asked for."""

    mean: float
    low: float
    high: float
    count: int
    """Windows or seeds that it comes from."""

    @property
    def half(self) -> float:
        """Half its width."""
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent runs with Student's t interval; of one run the interval is all numbers.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    data = np.asarray(values, dtype=float)
    mean, count = float(data.mean()), len(data)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * data.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def paired_difference(ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of `ours − theirs`, run by run, with Student's t interval: the two ran on the same windows, in this order.

    Raises ValueError for lists of different lengths.
    """
    _check_pairs(ours, theirs)
    return mean_interval([a - b for a, b in zip(ours, theirs, strict=True)], confidence)


def paired_ratio(
    ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """`Σ ours / Σ theirs` with a percentile bootstrap over the pairs (10,000 resamples of a fixed seed).

    Infinite where `theirs` is 0. Raises ValueError for lists of different lengths, or empty ones.
    """
    _check_pairs(ours, theirs)
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(a), (RESAMPLES, len(a)))
    ratio = _ratio(a.sum(), b.sum())
    ratios = [_ratio(x, y) for x, y in zip(a[picks].sum(axis=1), b[picks].sum(axis=1), strict=True)]
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2], method="nearest")
    return Interval(ratio, float(low), float(high), len(a))


def _ratio(above: float, below: float) -> float:
    if below:
        return float(above / below)
    return math.inf if above else 1.0


def _check_pairs(ours: Sequence[float], theirs: Sequence[float]) -> None:
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"paired runs must be as many on both sides, got {len(ours)} and {len(theirs)}")
