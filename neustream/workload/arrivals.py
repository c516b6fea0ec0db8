"""Arrival times of a synthetic workload. Every random number comes from a seed that is passed in."""

from __future__ import annotations

import math

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
