"""Arrival times of a synthetic workload. Every random number comes from a seed that is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_CV, MOST_CV = 1e-6, 1e6
"""Beyond these the gamma distribution's parameters are not finite, or all gaps but one are 0."""


def gamma_arrivals(rate: float, cv: float, num_requests: int, seed: int) -> NDArray[np.float64]:
    """Arrival times in seconds: gamma gaps of mean 1/rate and coefficient of variation `cv`; shape (num_requests,).

    cv 1 is Poisson. Raises ValueError unless rate and cv are finite and above 0.
    """
    for name, value in (("rate", rate), ("cv", cv)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be above 0, got {value:g}")
    if not LEAST_CV <= cv <= MOST_CV:
        raise ValueError(f"cv must be between {LEAST_CV:g} and {MOST_CV:g}, got {cv:g}")
    shape = 1 / cv**2
    gaps = np.random.RandomState(seed).gamma(shape, cv**2 / rate, size=num_requests)
    arrivals: NDArray[np.float64] = np.cumsum(gaps)
    return arrivals


@dataclass(frozen=True, slots=True)
class Bursts:
    """Requests that come in bursts. Raises ValueError for values out of range."""

    size: float
    """Mean number of requests of a burst, at least 1; geometric."""
    gap: float
    """Mean seconds between two requests of a burst; exponential, 0 for all at once."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.size) and self.size >= 1):
            raise ValueError(f"a burst must have at least 1 request in the mean, got {self.size:g}")
        if not (math.isfinite(self.gap) and self.gap >= 0):
            raise ValueError(f"the gap within a burst must be at least 0 s, got {self.gap:g}")

    def arrivals(self, rate: float, num_requests: int, seed: int) -> NDArray[np.float64]:
        """Arrival times in seconds, `rate` requests per second in the mean; shape (num_requests,).

        The pauses between bursts are exponential. Raises ValueError where bursts are slower than the rate.
        """
        pause = self.size / rate - (self.size - 1) * self.gap
        if not (math.isfinite(rate) and rate > 0) or pause <= 0:
            raise ValueError(
                f"bursts of {self.size:g} requests, {self.gap:g} s between them, cannot make {rate:g} requests/s"
            )
        rng = np.random.RandomState(seed)
        is_first = rng.random_sample(num_requests) < 1 / self.size
        is_first[:1] = True
        gaps = rng.exponential(1.0, num_requests) * np.where(is_first, pause, self.gap)
        arrivals: NDArray[np.float64] = np.cumsum(gaps)
        return arrivals
