"""neustream on language models: the kinds of SLO it credits, and requests that were preempted."""

from __future__ import annotations

import math

import pytest

from neustream import AbsoluteSlo, LatencyTable, Outcome, Request, make_policy
from neustream.latency import ContextLatency, TokensLatency
from neustream.route import llm_route
from neustream.testing import drive, fake_loop
from neustream.workload import gamma_arrivals, prompt_lengths

TABLE = LatencyTable(
    "made-up",
    "d",
    {"prefill": TokensLatency((0.02, 4e-4, 0.0)), "decode": ContextLatency((0.04, 1.5e-5), (1, 64), (0.04, 0.05))},
)


def prompts(slo: AbsoluteSlo, rate: float, count: int) -> list[Request]:
    route = llm_route(60)
    arrivals, sizes = gamma_arrivals(rate, 1.0, count, seed=0).tolist(), prompt_lengths(count, seed=0)
    return [
        Request(str(i), arrival, slo.bind(arrival, route, int(sizes[i]), TABLE), route, int(sizes[i]))
        for i, arrival in enumerate(arrivals)
    ]


def num_met(policy: str, slo: AbsoluteSlo) -> int:
    requests = prompts(slo, rate=1.0, count=60)
    loop, clock = fake_loop(make_policy(policy, TABLE), TABLE, lambda request: None)
    drive(loop, clock, requests)
    return sum(request.outcome is Outcome.MET for request in requests)


@pytest.mark.parametrize("ttft", [0.5, 1.0, math.inf])
@pytest.mark.parametrize("e2el", [8.0, math.inf])
def test_where_nothing_paces_the_tokens_a_light_load_is_served_whole(ttft, e2el):
    slo = AbsoluteSlo(ttft, e2el=e2el)
    assert num_met("fcfs", slo) == 60
    assert num_met("neustream", slo) == 60
