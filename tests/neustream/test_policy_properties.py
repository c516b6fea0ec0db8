"""What holds for every policy in every state."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neustream import POLICIES, LatencyTable, Limits, Outcome, Request, ScaleSlo, StepPlan, Streams, make_policy
from neustream.cost import remaining_alone
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.route import llm_route, pipeline_route
from neustream.testing import drive, fake_loop

LLM = LatencyTable(
    "opt",
    "d",
    {"prefill": TokensLatency((0.02, 0.001, 0.0)), "decode": ContextLatency((0.03, 1e-5), (1, 8), (0.03, 0.05))},
)
LOOP = LatencyTable(
    "dit",
    "d",
    {
        "text_encoder": BatchLatency((1, 2), (0.01, 0.015)),
        "denoise": BatchLatency((1, 2, 4, 8), (0.1, 0.12, 0.16, 0.24)),
        "vae": BatchLatency((1, 2), (0.05, 0.1)),
    },
)
ROUNDING = 1e-9
"""Seconds: a policy may subtract where a test adds."""
KINDS = [
    (name, table)
    for name, entry in POLICIES.items()
    for table, build in ((LLM, entry.llm), (LOOP, entry.loop))
    if build
]
IDS = [f"{name}-{table.model}" for name, table in KINDS]


@st.composite
def states(draw: st.DrawFn, table: LatencyTable) -> tuple[Streams, float]:
    streams = Streams(table.modules)
    now = draw(st.floats(0.0, 5.0))
    for i in range(draw(st.integers(0, 12))):
        arrival = draw(st.floats(0.0, 5.0)) * now / 5
        size = draw(st.integers(1, 60)) if table is LLM else 1
        count = draw(st.integers(1, 12))
        route = llm_route(count) if table is LLM else pipeline_route(table.modules, count)
        slo = ScaleSlo(draw(st.floats(1.0, 40.0)), draw(st.floats(1.0, 4.0)))
        request = Request(f"r{i}", arrival, slo.bind(arrival, route, size, table), route, size)
        total = sum(stage.visits for stage in route)
        for _ in range(draw(st.integers(0, total - 1))):
            request.advance(now)
        if table is LLM and request.stage and draw(st.booleans()):
            request.preempt()
        request.passes = draw(st.integers(0, 3))
        streams.add(request)
    return streams, now


def check_plan(plan: StepPlan, streams: Streams) -> None:
    rejected = {rejection.request.request_id for rejection in plan.rejected}
    batched = [request.request_id for request in plan.batch] + [piece.request.request_id for piece in plan.pieces]
    assert len(batched) == len(set(batched))
    assert not rejected & set(batched)
    for request in plan.batch:
        assert plan.module is not None
        assert request in list(streams[plan.module])
        assert request.outcome is None
    for piece in plan.pieces:
        assert piece.request.stage == 0
        assert 0 < piece.work <= piece.request.pending
    assert all(rejection.reason for rejection in plan.rejected)
    assert all(rejection.request.outcome is None for rejection in plan.rejected)


@pytest.mark.parametrize(("name", "table"), KINDS, ids=IDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_plan_batches_live_requests_of_its_module_once_and_changes_nothing(name, table, data):
    streams, now = data.draw(states(table))
    policy = make_policy(name, table)
    before = copy.deepcopy([(r.request_id, r.stage, r.left, r.passes, r.units, r.demoted) for r in streams])
    plan = policy.plan(now, streams, Limits())
    check_plan(plan, streams)
    again = policy.plan(now, streams, Limits())
    assert (plan.module, [r.request_id for r in plan.batch]) == (again.module, [r.request_id for r in again.batch])
    assert before == [(r.request_id, r.stage, r.left, r.passes, r.units, r.demoted) for r in streams]


@pytest.mark.parametrize(("name", "table"), KINDS, ids=IDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_policy_with_live_requests_runs_rejects_or_says_when_it_will(name, table, data):
    streams, now = data.draw(states(table))
    plan = make_policy(name, table).plan(now, streams, Limits())
    assert plan.module or plan.rejected or plan.wake is not None or not len(streams)


@pytest.mark.parametrize(("name", "table"), KINDS, ids=IDS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_request_that_goes_in_ends_exactly_once(name, table, data):
    requests = []
    for i in range(data.draw(st.integers(1, 15))):
        arrival = data.draw(st.floats(0.0, 3.0))
        size = data.draw(st.integers(1, 60)) if table is LLM else 1
        count = data.draw(st.integers(1, 6))
        route = llm_route(count) if table is LLM else pipeline_route(table.modules, count)
        slo = ScaleSlo(data.draw(st.floats(1.0, 6.0)), 1.5)
        on_miss = data.draw(st.sampled_from(["reject", "demote"]))
        deadlines = slo.bind(arrival, route, size, table)
        requests.append(Request(f"r{i}", arrival, deadlines, route, size, on_miss=on_miss))
    ended: list[Request] = []
    loop, clock = fake_loop(make_policy(name, table), table, ended.append)
    drive(loop, clock, requests)
    assert sorted(r.request_id for r in ended) == sorted(r.request_id for r in requests)
    assert all(r.outcome in (Outcome.MET, Outcome.LATE, Outcome.REJECTED) for r in requests)
    for request in requests:
        if request.outcome is Outcome.MET:
            assert request.units == request.max_units == request.units_on_time


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_neustream_rejects_no_prompt_that_could_still_make_its_first_token_alone(data):
    streams, now = data.draw(states(LLM))
    for rejection in make_policy("neustream", LLM).plan(now, streams, Limits()).rejected:
        alone = LLM["prefill"].alone(rejection.request.pending)
        assert now + alone > rejection.request.next_deadline - ROUNDING


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_neustream_rejects_no_image_that_could_still_make_it_alone(data):
    streams, now = data.draw(states(LOOP))
    for rejection in make_policy("neustream", LOOP).plan(now, streams, Limits()).rejected:
        assert now + remaining_alone(rejection.request, LOOP) >= rejection.request.next_deadline - ROUNDING


@pytest.mark.parametrize("seats", [1, 3])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_llm_plans_keep_within_seats_work_and_memory(seats, data):
    streams, now = data.draw(states(LLM))
    limits = Limits(max_resident=seats, max_work=80, free_blocks=6, block_size=16)
    for name, entry in POLICIES.items():
        if entry.llm is None:
            continue
        plan = make_policy(name, LLM).plan(now, streams, limits)
        if plan.module == "prefill" and plan.batch:
            assert len(streams["decode"]) + len(plan.batch) <= seats
            assert sum(r.pending for r in plan.batch) <= 80 or len(plan.batch) == 1
            assert sum(limits.blocks(r.pending) for r in plan.batch) <= 6
