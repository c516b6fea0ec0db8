"""What holds for every policy in every state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tight_device import TightDevice

from neustream import (
    POLICIES,
    AbsoluteSlo,
    LatencyTable,
    Limits,
    Outcome,
    Request,
    ScaleSlo,
    StepPlan,
    Streams,
    make_policy,
)
from neustream.cost import remaining_alone
from neustream.route import llm_route, pipeline_route
from neustream.slo import NO_DEADLINES
from neustream.testing import LLM_TABLE as LLM
from neustream.testing import PIPELINE_TABLE as LOOP
from neustream.testing import drive, fake_loop

ROUNDING = 1e-9
"""Seconds: a policy may subtract where a test adds."""
KINDS = [
    (name, table)
    for name, entry in POLICIES.items()
    for table, build in ((LLM, entry.llm), (LOOP, entry.loop))
    if build
]
IDS = [f"{name}-{table.model}" for name, table in KINDS]


times = st.floats(0.01, 8.0)
SLOS = st.one_of(
    st.builds(ScaleSlo, st.floats(1.0, 40.0), st.floats(1.0, 4.0)),
    st.builds(AbsoluteSlo, times),
    st.builds(AbsoluteSlo, times, st.floats(0.01, 0.5)),
    st.builds(lambda ttft, e2el: AbsoluteSlo(ttft, e2el=e2el), times, times),
    st.builds(lambda e2el: AbsoluteSlo(e2el=e2el), times),
    st.builds(AbsoluteSlo, times, st.floats(0.01, 0.5), times),
    st.none(),
)
ON_MISS = st.sampled_from(["reject", "demote"])
LLM_LIMITS = st.builds(
    lambda seats, work, total, share, size, spare, can_split: Limits(
        max_resident=seats,
        max_work=work,
        total_blocks=total,
        free_blocks=int(share * total),
        block_size=size,
        spare_blocks=spare,
        can_split=can_split,
    ),
    st.integers(1, 12),
    st.integers(1, 200),
    st.integers(10, 400),
    st.floats(0.0, 1.0),
    st.integers(1, 16),
    st.integers(0, 3),
    st.booleans(),
)
MAX_BATCHES = st.dictionaries(st.sampled_from(list(LOOP.modules)), st.integers(1, 3))
LOOP_LIMITS = st.builds(lambda sizes: Limits(max_batch=sizes), MAX_BATCHES)


def draw_request(
    draw: Callable, table: LatencyTable, name: str, arrival: float, max_size: int = 60, max_count: int = 12
) -> Request:
    size, count = (draw(st.integers(1, max_size)) if table is LLM else 1), draw(st.integers(1, max_count))
    route = llm_route(count) if table is LLM else pipeline_route(table.modules, count)
    slo, width = draw(SLOS), draw(st.sampled_from([1, 1, 1, 2])) if table is LLM else 1
    deadlines = slo.bind(arrival, route, size, table) if slo is not None else NO_DEADLINES
    return Request(name, arrival, deadlines, route, size, on_miss=draw(ON_MISS), width=width)


@st.composite
def states(draw: st.DrawFn, table: LatencyTable) -> tuple[Streams, float]:
    """Requests anywhere on their routes, some preempted (LLM) and some demoted, and the time."""
    streams = Streams(table.modules)
    now = draw(st.floats(0.0, 5.0))
    for i in range(draw(st.integers(0, 12))):
        request = draw_request(draw, table, f"r{i}", draw(st.floats(0.0, 1.0)) * now)
        count, begun = draw(st.integers(0, sum(stage.visits for stage in request.route) - 1)), draw(st.floats(0.0, 1.0))
        for visit in range(1, count + 1):  # at an even pace from some moment until now
            request.advance(now - begun * (now - request.arrival) * (1 - visit / count))
        if table is LLM and request.stage and draw(st.booleans()):
            request.preempt()
        request.passes = draw(st.integers(0, 3))
        request.demoted = draw(st.sampled_from([False, False, True]))
        streams.add(request)
    return streams, now


def limits_for(name: str, table: LatencyTable) -> st.SearchStrategy[Limits]:
    """What a device may hold that is able to do what the policy needs."""
    if table is not LLM:
        return LOOP_LIMITS
    return LLM_LIMITS.map(lambda limits: replace(limits, can_split=True)) if POLICIES[name].splits else LLM_LIMITS


def snapshot(streams: Streams) -> list[tuple]:
    return [tuple(copy.copy(getattr(r, slot)) for slot in Request.__slots__) for r in streams]


def check_plan(plan: StepPlan, streams: Streams, limits: Limits) -> None:
    members = list(plan.members)
    names = [request.request_id for request in members]
    rejected = {rejection.request.request_id for rejection in plan.rejected}
    assert len(names) == len(set(names))
    assert not rejected & set(names)
    assert all(rejection.reason and rejection.request in list(streams) for rejection in plan.rejected)
    assert all(request in list(streams[plan.module]) for request in plan.batch)
    assert all(request.is_resident and request.demoted for request in plan.preempted)
    assert not set(plan.preempted) & set(members)
    assert limits.can_split or not plan.pieces
    for piece in plan.pieces:
        assert piece.request.stage == 0
        assert 0 < piece.work <= piece.request.pending
    if plan.module is not None:
        assert len(plan.batch) <= limits.max_batch.get(plan.module, len(plan.batch))
    new = [request for request in members if not request.is_resident]
    if new and "decode" in streams.modules:
        stay = [request for request in streams if request.is_resident and request not in plan.preempted]
        assert sum(request.width for request in [*stay, *new]) <= limits.max_resident
        free = limits.free_blocks + sum(limits.blocks(request.context) for request in plan.preempted)
        assert sum(limits.blocks(request.pending) for request in new) <= free - limits.spare_blocks
        work = sum(request.pending for request in plan.batch if not request.is_resident)
        assert work + sum(piece.work for piece in plan.pieces) <= limits.max_work or len(members) == 1


@pytest.mark.parametrize(("name", "table"), KINDS, ids=IDS)
@given(data=st.data())
@settings(max_examples=22, deadline=None)
def test_a_plan_is_well_formed_fits_the_device_changes_nothing_and_leaves_nobody_waiting_for_ever(name, table, data):
    """With room for everybody a policy runs somebody, rejects somebody or says when it will."""
    streams, now = data.draw(states(table))
    limits = data.draw(limits_for(name, table))
    policy = make_policy(name, table)
    before = snapshot(streams)
    plan = policy.plan(now, streams, limits)
    check_plan(plan, streams, limits)
    assert policy.plan(now, streams, limits) == plan
    roomy = policy.plan(now, streams, Limits(can_split=True))
    assert roomy.module or roomy.rejected or roomy.wake is not None or not len(streams)
    assert snapshot(streams) == before


@pytest.mark.parametrize(("name", "table"), KINDS, ids=IDS)
@given(data=st.data())
@settings(max_examples=18, deadline=None)
def test_every_request_that_goes_in_ends_exactly_once(name, table, data):
    """Prompts: on a device short of seats and memory, where texts end early and requests are preempted at random."""
    arrivals = data.draw(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=10))
    requests = [draw_request(data.draw, table, f"r{i}", arrival, 30, 6) for i, arrival in enumerate(arrivals)]
    ended: list[Request] = []
    stops: dict[str, int] = {}
    if table is LLM:
        blocks = data.draw(st.integers(76, 150))  # the largest alone: two sequences of 30 + 6, and what is spare
        seats, work = data.draw(st.integers(2, 5)), data.draw(st.integers(5, 80))
        spare = data.draw(st.integers(0, 2))
        limits = Limits(seats, work, blocks, 1, spare, blocks, can_split=POLICIES[name].splits)
        stops = {request.request_id: data.draw(st.integers(1, 6)) for request in requests if data.draw(st.booleans())}
        device = TightDevice(make_policy(name, table), table, limits, stops=stops, num_preemptions=10)
        device.serve(requests)
        ended = device.ended
    else:
        loop, clock = fake_loop(make_policy(name, table), table, ended.append)
        drive(loop, clock, requests)
    assert sorted(r.request_id for r in ended) == sorted(r.request_id for r in requests)
    for request in requests:
        assert request.outcome in (Outcome.MET, Outcome.LATE, Outcome.REJECTED)
        is_whole = request.units >= min(request.max_units, stops.get(request.request_id, request.max_units))
        assert is_whole == (request.outcome is not Outcome.REJECTED)
        assert (request.outcome is Outcome.MET) == (is_whole and request.units_on_time == request.units)
        if request.outcome is Outcome.REJECTED:
            assert request.reason
            assert request.on_miss == "reject"


@pytest.mark.parametrize("name", ["neustream", "slack"])
@given(data=st.data())
@settings(max_examples=18, deadline=None)
def test_a_preempted_prompt_is_never_rejected_and_a_rejected_one_has_delivered_nothing(name, data):
    streams, now = data.draw(states(LLM))
    plan = make_policy(name, LLM).plan(now, streams, data.draw(LLM_LIMITS))
    assert all(rejection.request.units == 0 for rejection in plan.rejected)


@pytest.mark.parametrize("name", ["neustream", "clockwork", "slack"])
@given(data=st.data())
@settings(max_examples=18, deadline=None)
def test_no_image_is_run_that_could_not_be_in_time_even_alone(name, data):
    streams, now = data.draw(states(LOOP))
    plan = make_policy(name, LOOP).plan(now, streams, Limits())
    for request in plan.batch:
        is_begun = request.left != [stage.visits for stage in request.route]
        if not request.demoted and not (name == "clockwork" and is_begun):  # which judges nobody twice
            assert now + remaining_alone(request, LOOP) <= request.next_deadline + ROUNDING


@given(data=st.data())
@settings(max_examples=18, deadline=None)
def test_neustream_rejects_no_prompt_that_could_still_make_its_first_token_alone(data):
    streams, now = data.draw(states(LLM))
    for rejection in make_policy("neustream", LLM).plan(now, streams, Limits()).rejected:
        alone = LLM["prefill"].alone(rejection.request.pending)
        assert now + alone > rejection.request.next_deadline - ROUNDING


@given(data=st.data())
@settings(max_examples=18, deadline=None)
def test_neustream_rejects_no_image_that_could_still_make_it_alone(data):
    streams, now = data.draw(states(LOOP))
    for rejection in make_policy("neustream", LOOP).plan(now, streams, Limits()).rejected:
        assert now + remaining_alone(rejection.request, LOOP) >= rejection.request.next_deadline - ROUNDING
