"""sarathi-edf: decodes never pause, a fixed number of prompt tokens rides along, earliest deadline first."""

from __future__ import annotations

from neustream.cost import StepPrice
from neustream.plan import Limits, StepPlan
from neustream.policies.base import USUAL, PolicyContext, at_least
from neustream.policies.mixed_step import MixedStep
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from neustream.tables import LatencyTable

BUDGET = 256
"""Tokens in a step. QoServe's, and the best on azure-conv 5000 and 11000, azure-code 2500 and 5500 (docs/peers.md)."""


class SarathiEdf:
    """Sarathi-Serve (Agrawal et al., OSDI'24) with prompts in order of their first token's deadline.

    Source: the baseline "Sarathi-EDF" of QoServe (ASPLOS'26), whose budget for TPOTs of 50 ms is 256 tokens.
    Departures: none. A preempted request goes by the deadline of its next token.
    """

    def __init__(self, table: LatencyTable, context: PolicyContext = USUAL, *, budget: int = BUDGET) -> None:
        self.price = StepPrice(table)
        self.budget = at_least("budget", budget, 1)

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        step = MixedStep(self.price, streams, limits, streams[DECODE])
        queue = sorted(streams[PREFILL], key=lambda request: request.next_deadline)
        least = 0 if step.batch else 1
        step.fill(queue, max(self.budget - step.sums.decodes, least))
        return step.plan()
