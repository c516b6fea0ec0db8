"""Workloads: when requests come and how long they are, for experiments and the simulator alike.

A workload has one seed. Arrivals, prompts, step counts and SLO classes are each drawn with it anew, so that one of them
is the same whatever the others are.
"""

from neustream.workload.arrivals import Bursts, gamma_arrivals
from neustream.workload.lengths import (
    MAX_PROMPT,
    MEAN_OUTPUT,
    MEAN_PROMPT,
    MIN_PROMPT,
    output_lengths,
    prompt_lengths,
    step_counts,
)

__all__ = [
    "MAX_PROMPT",
    "MEAN_OUTPUT",
    "MEAN_PROMPT",
    "MIN_PROMPT",
    "Bursts",
    "gamma_arrivals",
    "output_lengths",
    "prompt_lengths",
    "step_counts",
]
