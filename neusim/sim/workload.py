"""The requests of a simulated experiment, made one by one as they arrive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from neustream.request import Request
from neustream.route import llm_route, pipeline_route
from neustream.slo import Slo
from neustream.tables import LatencyTable
from neustream.workload import gamma_arrivals, prompt_lengths, step_counts


class Workload(Protocol):
    """Says which requests come, and when."""

    @property
    def num_requests(self) -> int:
        """How many."""
        ...

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        """Fresh requests in order of arrival; the same ones at every call."""
        ...


@dataclass(frozen=True, slots=True)
class PipelineWorkload:
    """Images: gamma arrivals, step counts uniform in low…high−1 (from a seed of their own)."""

    rate: float
    cv: float
    slo: Slo
    steps: tuple[int, int]
    num_requests: int = 500
    seed: int = 0
    steps_seed: int = 0

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        arrivals = gamma_arrivals(self.rate, self.cv, self.num_requests, self.seed)
        counts = step_counts(*self.steps, self.num_requests, self.steps_seed)
        routes = {count: pipeline_route(table.modules, count) for count in range(*self.steps)}
        for i in range(self.num_requests):
            arrival, route = float(arrivals[i]), routes[int(counts[i])]
            yield Request(str(i), arrival, self.slo.bind(arrival, route, 1, table), route)


@dataclass(frozen=True, slots=True)
class LlmWorkload:
    """Prompts of log-normal length, gamma arrivals, `max_tokens` output tokens each."""

    rate: float
    cv: float
    slo: Slo
    max_tokens: int = 300
    num_requests: int = 500
    seed: int = 0

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        arrivals = gamma_arrivals(self.rate, self.cv, self.num_requests, self.seed)
        lengths = prompt_lengths(self.num_requests, self.seed)
        route = llm_route(self.max_tokens)
        for i in range(self.num_requests):
            arrival, size = float(arrivals[i]), int(lengths[i])
            yield Request(str(i), arrival, self.slo.bind(arrival, route, size, table), route, size)
