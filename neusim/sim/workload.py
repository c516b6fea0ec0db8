"""The requests of a simulated experiment, made one by one as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from neustream.request import Request
from neustream.route import Route, llm_route, pipeline_route
from neustream.slo import Slo
from neustream.tables import LatencyTable
from neustream.workload import Bursts, gamma_arrivals, prompt_lengths, step_counts
from neustream.workload.classes import SloClass, draw_classes
from neustream.workload.traces import TracedRequest


class Workload(Protocol):
    """Says which requests come, and when."""

    @property
    def num_requests(self) -> int:
        """How many."""
        ...

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        """Fresh requests in order of arrival; the same ones at every call."""
        ...


class HiddenLengths(Protocol):
    """A workload whose outputs end before their maximum, which no policy knows."""

    def num_units(self, request: Request) -> int:
        """Units of the request's output, at most those of its route."""
        ...


class SharedPrefixes(Protocol):
    """A workload whose prompts may begin alike. `prefix` is None where it does not say."""

    @property
    def prefix(self) -> Callable[[Request], Sequence[int]] | None:
        """Names of the blocks of a request's prompt, front to back."""
        ...


def _classes(workload: PipelineWorkload | LlmWorkload | TraceWorkload) -> list[SloClass]:
    """The SLO class of each request: drawn by the classes' shares, or the one nameless class of the workload's SLO."""
    if not workload.classes:
        if workload.slo is None:
            raise ValueError("a workload needs an SLO, or SLO classes")
        return [SloClass("", workload.slo)] * workload.num_requests
    return draw_classes(workload.classes, workload.num_requests, workload.seed)


def _arrivals(workload: PipelineWorkload | LlmWorkload | TraceWorkload) -> NDArray[np.float64]:
    """When its requests come, in seconds: in bursts where it has them, else after gamma gaps."""
    rate, count, seed = workload.rate, workload.num_requests, workload.seed
    if workload.bursts is not None:
        return workload.bursts.arrivals(rate, count, seed)
    return gamma_arrivals(rate, workload.cv, count, seed)


@dataclass(frozen=True, slots=True)
class PipelineWorkload:
    """Images: gamma arrivals or bursts, step counts uniform in low…high−1."""

    rate: float
    cv: float
    slo: Slo | None
    steps: tuple[int, int]
    num_requests: int = 500
    seed: int = 0
    classes: tuple[SloClass, ...] = ()
    bursts: Bursts | None = None

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        arrivals = _arrivals(self)
        counts = step_counts(*self.steps, self.num_requests, self.seed)
        routes = {count: pipeline_route(table.modules, count) for count in range(*self.steps)}
        for i, kind in enumerate(_classes(self)):
            yield _request(i, float(arrivals[i]), routes[int(counts[i])], 1, kind, table)


@dataclass(frozen=True, slots=True)
class LlmWorkload:
    """Prompts of log-normal length, gamma arrivals or bursts, `max_tokens` output tokens each."""

    rate: float
    cv: float
    slo: Slo | None
    max_tokens: int = 300
    num_requests: int = 500
    seed: int = 0
    classes: tuple[SloClass, ...] = ()
    bursts: Bursts | None = None

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        arrivals = _arrivals(self)
        lengths = prompt_lengths(self.num_requests, self.seed)
        route = llm_route(self.max_tokens)
        for i, kind in enumerate(_classes(self)):
            yield _request(i, float(arrivals[i]), route, int(lengths[i]), kind, table)


@dataclass(frozen=True, slots=True)
class TraceWorkload:
    """The requests of a trace. Their outputs end where the trace says, which policies do not know.

    A request's maximum is `max_tokens`; longer outputs of the trace are cut there. A trace without times gets gamma
    arrivals of `rate` and `cv`, or bursts. With `is_hidden` False a request's maximum is its true length: for bounds.
    """

    trace: Sequence[TracedRequest]
    slo: Slo | None
    max_tokens: int
    rate: float = 1.0
    cv: float = 1.0
    seed: int = 0
    classes: tuple[SloClass, ...] = ()
    is_hidden: bool = True
    bursts: Bursts | None = None

    @property
    def num_requests(self) -> int:
        """As many as the trace has."""
        return len(self.trace)

    @property
    def _has_times(self) -> bool:
        return bool(self.trace) and self.trace[0].offset is not None

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        made_up = [0.0] * len(self.trace) if self._has_times else _arrivals(self).tolist()
        longest = llm_route(self.max_tokens)
        for i, (row, kind) in enumerate(zip(self.trace, _classes(self), strict=True)):
            arrival = made_up[i] if row.offset is None else row.offset
            route = longest if self.is_hidden else llm_route(min(row.output, self.max_tokens))
            yield _request(i, arrival, route, row.prompt, kind, table)

    @property
    def prefix(self) -> Callable[[Request], Sequence[int]] | None:
        return self._blocks if any(row.blocks for row in self.trace) else None

    def _blocks(self, request: Request) -> Sequence[int]:
        return self.trace[int(request.request_id)].blocks

    def num_units(self, request: Request) -> int:
        return min(self.trace[int(request.request_id)].output, self.max_tokens)


def _request(number: int, arrival: float, route: Route, size: int, kind: SloClass, table: LatencyTable) -> Request:
    deadlines = kind.slo.bind(arrival, route, size, table)
    return Request(str(number), arrival, deadlines, route, size, on_miss=kind.on_miss, slo_class=kind.name)
