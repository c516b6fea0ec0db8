"""Workloads: arrival times, prompt lengths, step counts. Every random number comes from a seed that is passed in."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from neustream.request import Route, Stage

LOOP_MODULE = "denoise"
"""The module of an image pipeline that a request visits once per denoising step."""
MEAN_PROMPT = 100
MIN_PROMPT = 10
MAX_PROMPT = 400


def gamma_arrivals(rate: float, cv: float, num_requests: int, seed: int) -> NDArray[np.float64]:
    """Arrival times in seconds: gamma gaps of mean 1/rate and coefficient of variation `cv`; shape (num_requests,).

    cv 1 is Poisson. Raises ValueError unless rate and cv are finite and above 0.
    """
    for name, value in (("rate", rate), ("cv", cv)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be above 0, got {value:g}")
    shape = 1 / cv**2
    gaps = np.random.RandomState(seed).gamma(shape, cv**2 / rate, size=num_requests)
    arrivals: NDArray[np.float64] = np.cumsum(gaps)
    return arrivals


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


def step_counts(low: int, high: int, num_requests: int, seed: int = 0) -> NDArray[np.int64]:
    """Denoising steps per request, uniform in low…high−1; shape (num_requests,)."""
    if not 1 <= low < high:
        raise ValueError(f"steps must be lo:hi with 1 <= lo < hi, got {low}:{high}")
    counts: NDArray[np.int64] = np.random.RandomState(seed).randint(low, high, num_requests).astype(np.int64)
    return counts


def llm_route(max_tokens: int) -> Route:
    """A prompt's way: one prefill, which delivers the first token, and a decode step for each further one."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    return Stage("prefill", 1, emits=True), Stage("decode", max_tokens - 1, emits=True)


def pipeline_route(modules: Iterable[str], steps: int) -> Route:
    """An image's way through a pipeline: each module once, in order, and `denoise` once per step."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return tuple(Stage(module, steps if module == LOOP_MODULE else 1) for module in modules)
