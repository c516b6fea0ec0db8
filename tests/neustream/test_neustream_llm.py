"""neustream on language models: the kinds of SLO it credits, and requests that were preempted."""

from __future__ import annotations

import math

import pytest

from neustream import AbsoluteSlo, Deadlines, LatencyTable, Limits, Outcome, Request, Streams, make_policy
from neustream.latency import ContextLatency, TokensLatency
from neustream.policies.neustream_llm import NeuStreamLlm
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


def running(name: str, first: float, pace: float, units: int, tokens: int = 50) -> Request:
    """A prompt of ten tokens that has `units` of its `tokens`."""
    request = Request(name, 0.0, Deadlines(first, pace), llm_route(tokens), 10)
    for _ in range(units):
        request.advance(0.0)
    return request


def preempted(name: str, first: float, pace: float, units: int) -> Request:
    request = running(name, first, pace, units)
    request.preempt()
    return request


def plan_of(table: LatencyTable, *requests: Request) -> list[str]:
    """Ids of whom neustream prefills at 1 s; decode steps take 0.1 s."""
    streams = Streams(table.modules)
    for request in requests:
        streams.add(request)
    plan = NeuStreamLlm(table).plan(1.0, streams, Limits())
    return [request.request_id for request in plan.batch] if plan.module == "prefill" else []


def test_a_late_preempted_request_is_prefilled_and_keeps_nobody_out(llm_table):
    lax, fresh = running("lax", 5.0, 0.5, 40), running("fresh", 5.0, 0.5, 0)
    assert plan_of(llm_table, lax, preempted("late", 0.3, 0.01, 32), fresh) == ["late", "fresh"]


def test_nor_does_it_once_it_runs_again(llm_table):
    late = preempted("late", 0.3, 0.01, 32)
    late.advance(1.0)
    assert plan_of(llm_table, late, running("fresh", 5.0, 0.5, 0)) == ["fresh"]


def test_but_it_waits_where_a_running_request_cannot_afford_its_prefill(llm_table):
    """Its 42 tokens take 0.52 s, and a decode step 0.1 s: the running one's next token is due at 1.6 s."""
    tight = running("tight", 1.6, 0.0, 40)
    assert plan_of(llm_table, tight, preempted("late", 0.3, 0.01, 32)) == []
    assert plan_of(llm_table, running("lax", 1.7, 0.0, 40), preempted("late", 0.3, 0.01, 32)) == ["late"]


def test_a_running_request_that_is_late_but_was_never_preempted_still_holds_the_others_off(llm_table):
    """The paper's rule, unchanged."""
    assert plan_of(llm_table, running("late", 0.3, 0.01, 32), running("fresh", 5.0, 0.5, 0)) == []


def test_a_preempted_request_is_served_before_anybody_new_whatever_keeps_coming(llm_table):
    """The running request has no time to spare until it ends at 2 s; a fresh prompt comes every 0.25 s meanwhile."""
    tight = running("tight", 0.1, 0.1, 1, tokens=21)
    fresh = [running(f"f{i}", 99.0, 0.5, 0) for i in range(8)]
    for i, request in enumerate(fresh):
        request.arrival = 0.25 * i
    loop, clock = fake_loop(NeuStreamLlm(llm_table), llm_table, lambda request: None)
    loop.streams.add(tight)
    loop.streams.add(preempted("late", 0.0, 0.01, 32))
    trace = drive(loop, clock, fresh)
    assert [(module, ids) for _, module, ids in trace[:20]] == [("decode", ["tight"])] * 20
    start, module, ids = trace[20]
    assert (start, module, ids[0]) == (2.0, "prefill", "late")
