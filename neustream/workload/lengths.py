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


MEAN_OUTPUT = 200
OUTPUT_SIGMA = 0.7


def output_lengths(
    num_requests: int, seed: int, *, mean: float = MEAN_OUTPUT, sigma: float = OUTPUT_SIGMA
) -> NDArray[np.int64]:
    """Log-normal output lengths in tokens, at least 1; shape (num_requests,).

    Mean and σ are near those of Azure's conversations (211 tokens, 0.68). Raises ValueError unless both are above 0.
    """
    for name, value in (("mean", mean), ("sigma", sigma)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"the {name} of output lengths must be above 0, got {value:g}")
    rng = np.random.RandomState([seed, 1])  # not the numbers that the prompts are made of
    lengths = rng.lognormal(math.log(mean) - sigma**2 / 2, sigma, size=num_requests)
    whole: NDArray[np.int64] = np.maximum(np.rint(lengths), 1).astype(np.int64)
    return whole


def step_counts(low: int, high: int, num_requests: int, seed: int) -> NDArray[np.int64]:
    """Denoising steps per request, uniform in low…high−1; shape (num_requests,)."""
    if not 1 <= low < high:
        raise ValueError(f"steps must be lo:hi with 1 <= lo < hi, got {low}:{high}")
    counts: NDArray[np.int64] = np.random.RandomState(seed).randint(low, high, num_requests).astype(np.int64)
    return counts
