"""vllm-v1: the scheduler of today's vLLM, which knows no deadlines."""

from __future__ import annotations

from neustream.policies.base import USUAL, PolicyContext
from neustream.policies.chunked import Chunked
from neustream.tables import LatencyTable

BUDGET = 2048
"""Tokens in a step: vLLM's default where it serves on a card of the A100's size; 8192 on one of the H100's."""


class VllmV1(Chunked):
    """Running requests first, in order, one token or the next piece of the prompt each; then waiting ones as they came.

    Source: vLLM V1, `vllm/v1/core/sched/scheduler.py`, `Scheduler.schedule`. That is `chunked` with another budget:
    prompts that have begun are among the running. Preemption from the tail is the driver's business.
    Departure: a prompt takes the memory of all its tokens with its first piece; vLLM's takes that of each piece.
    """

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL, *, budget: int = BUDGET) -> None:
        super().__init__(table, context, budget=budget)
