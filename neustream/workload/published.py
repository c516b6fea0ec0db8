"""Traffic as published statistics describe it, for where no trace is at hand.

Lengths follow quantiles, arrivals a rate and how they cluster. Prompt and output of a request are independent, as they
nearly are in these traces (correlations of −0.11, 0.00 and 0.07), and so are neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neustream.workload.arrivals import Bursts, gamma_arrivals
from neustream.workload.traces import TracedRequest

SHARES = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 0.999, 1.0)
"""The shares of requests that quantiles are given for."""


@dataclass(frozen=True, slots=True)
class Published:
    """What is known of a trace: lengths in tokens, one for each of `SHARES`; arrivals."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    rate: float
    """Requests per second."""
    arrivals: float | Bursts
    """How they cluster: the coefficient of variation of gamma gaps, or bursts."""


PUBLISHED: Mapping[str, Published] = {
    "azure-conv-like": Published(
        (2, 29, 181, 207, 396, 1020, 1189, 2734, 4083, 4142, 6179, 14050),
        (7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 954, 1000),
        5.53,
        1.09,
    ),
    "azure-code-like": Published(
        (3, 17, 75, 147, 578, 1469, 2744, 5187, 7303, 7436, 7437, 7437),
        (6, 6, 6, 7, 9, 13, 24, 55, 90, 251, 825, 1899),
        2.57,
        Bursts(62.5, 0.092),
    ),
    "mooncake-like": Published(
        (891, 894, 901, 964, 2306, 6909, 15367, 27367, 39550, 85400, 121300, 126195),
        (1, 3, 10, 24, 156, 350, 472, 597, 698, 1118, 2000, 2000),
        3.40,
        Bursts(10.2, 0.0),
    ),
}
"""By name. Azure's LLM inference traces of 2023 (Splitwise, ISCA'24), Mooncake's conversations (FAST'25).

A burst ends where nothing comes for 1 s. Mooncake's times are multiples of 3 s."""


def published_trace(name: str, num_requests: int, seed: int) -> list[TracedRequest]:
    """So many requests of the traffic of that name, from time 0 at its own rate. The same seed gives the same.

    Raises ValueError for an unknown name.
    """
    known = PUBLISHED.get(name)
    if known is None:
        raise ValueError(f"unknown traffic {name!r}; there is {', '.join(PUBLISHED)}")
    if isinstance(known.arrivals, Bursts):
        times = known.arrivals.arrivals(known.rate, num_requests, seed)
    else:
        times = gamma_arrivals(known.rate, known.arrivals, num_requests, seed)
    prompts = _lengths(known.prompt, np.random.RandomState([seed, 2]).random_sample(num_requests))
    outputs = _lengths(known.output, np.random.RandomState([seed, 3]).random_sample(num_requests))
    first = float(times[0]) if num_requests else 0.0
    return [
        TracedRequest(float(time) - first, int(prompt), int(output))
        for time, prompt, output in zip(times, prompts, outputs, strict=True)
    ]


def _lengths(quantiles: tuple[int, ...], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Lengths at these shares; between two quantiles, logarithms are interpolated."""
    logs = np.interp(shares, SHARES, np.log(quantiles))
    lengths: NDArray[np.int64] = np.maximum(np.rint(np.exp(logs)), 1).astype(np.int64)
    return lengths
