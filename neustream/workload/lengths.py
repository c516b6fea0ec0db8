"""Lengths of a synthetic workload: prompts in tokens, denoising steps. Every random number comes from a seed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MEAN_PROMPT = 100
MIN_PROMPT = 10
MAX_PROMPT = 400


def prompt_lengths(num_requests: int, seed: int, *, mean: float = MEAN_PROMPT) -> NDArray[np.int64]:
    """Log-normal prompt lengths in tokens, clipped to 10…400; shape (num_requests,).

    σ is 0.8, which spreads the bulk over about a decade, as chat prompts do; μ is set so that the unclipped
    mean is `mean`.
    """
    sigma = 0.8
    rng = np.random.RandomState(seed)
    lengths = rng.lognormal(math.log(mean) - sigma**2 / 2, sigma, size=num_requests)
    clipped: NDArray[np.int64] = np.clip(np.rint(lengths), MIN_PROMPT, MAX_PROMPT).astype(np.int64)
    return clipped


def step_counts(low: int, high: int, num_requests: int, seed: int) -> NDArray[np.int64]:
    """Denoising steps per request, uniform in low…high−1; shape (num_requests,)."""
    if not 1 <= low < high:
        raise ValueError(f"steps must be lo:hi with 1 <= lo < hi, got {low}:{high}")
    counts: NDArray[np.int64] = np.random.RandomState(seed).randint(low, high, num_requests).astype(np.int64)
    return counts
