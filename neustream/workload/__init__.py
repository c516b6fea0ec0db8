"""Workloads: when requests come and how long they are, for experiments and the simulator alike."""

from neustream.workload.arrivals import gamma_arrivals
from neustream.workload.lengths import MAX_PROMPT, MEAN_PROMPT, MIN_PROMPT, prompt_lengths, step_counts

__all__ = ["MAX_PROMPT", "MEAN_PROMPT", "MIN_PROMPT", "gamma_arrivals", "prompt_lengths", "step_counts"]
