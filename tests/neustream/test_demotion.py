"""A demoted request never costs a live one its SLO, whatever memory and seats it holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tight_device import TightDevice

from neustream import POLICIES, LatencyTable, Limits, Outcome, Request, Streams, make_policy
from neustream.latency import ContextLatency, TokensLatency
from neustream.plan import IDLE, UNLIMITED
from neustream.policies.demotion import WithDemotion
from neustream.policies.fcfs import Fcfs
from neustream.route import llm_route
from neustream.slo import Deadlines

TABLE = LatencyTable("opt", "d", {"prefill": TokensLatency((0.02, 0.001, 0.0)), "decode": ContextLatency((0.05, 1e-5))})
LLM_POLICIES = [name for name, entry in POLICIES.items() if entry.llm]


def prompt(name: str, size: int, tokens: int, units: int = 0, *, due: float = 99.0, arrival: float = 0.0) -> Request:
    """A prompt that has `units` of its `tokens`."""
    request = Request(name, arrival, Deadlines(due, 1.0), llm_route(tokens), size)
    for _ in range(units):
        request.advance(0.0)
    return request


def device_with(policy: str, limits: Limits, demoted: list[Request]) -> TightDevice:
    device = TightDevice(make_policy(policy, TABLE), TABLE, limits)
    for request in demoted:
        request.demoted = True
        device.place(request)
    return device


@pytest.mark.parametrize("policy", LLM_POLICIES)
def test_a_live_prompt_gets_the_memory_that_demoted_ones_hold_the_newest_first(policy):
    """The device's 12 blocks hold three demoted contexts of 4; a live prompt of 6 needs two of them."""
    demoted = [prompt(name, 3, 8, units=2, arrival=i / 10) for i, name in enumerate("abc")]
    limits = Limits(total_blocks=12, free_blocks=12, block_size=1, can_split=True)
    device = device_with(policy, limits, demoted)
    live = prompt("live", 6, 2)
    device.serve([live])
    first = device.plans[0]
    assert [request.request_id for request in first.members] == ["live"]
    assert [request.request_id for request in first.preempted] == ["c", "b"]
    assert live.outcome is Outcome.MET
    assert device.ended[0] is live
    assert all(request.units == 8 for request in demoted)


@pytest.mark.parametrize("policy", LLM_POLICIES)
def test_a_live_prompt_gets_a_seat_that_a_demoted_one_holds(policy):
    demoted = [prompt(name, 3, 20, units=2) for name in "ab"]
    device = device_with(policy, Limits(max_resident=2, total_blocks=99, can_split=True), demoted)
    device.serve([prompt("live", 6, 2)])
    assert [len(plan.preempted) for plan in device.plans[:2]] == [1, 0]
    assert [request.request_id for request in device.plans[1].batch] == ["live"]


@pytest.mark.parametrize("policy", LLM_POLICIES)
def test_demoted_requests_keep_what_nobody_needs(policy):
    demoted = [prompt(name, 3, 20, units=2) for name in "ab"]
    device = device_with(policy, Limits(max_resident=3, total_blocks=99, can_split=True), demoted)
    device.serve([prompt("live", 6, 20)])
    assert not any(plan.preempted for plan in device.plans)


def test_demoted_requests_do_not_outgrow_live_ones_that_hold_memory_and_do_not_run():
    class Waits:
        def plan(self, now, streams, limits):
            return IDLE

    streams = Streams(TABLE.modules)
    for request in (prompt("live", 4, 9, units=1), prompt("a", 4, 9, units=1), prompt("b", 4, 9, 1, arrival=1.0)):
        streams.add(request)
    for request in list(streams["decode"])[1:]:
        streams.demote(request)
    policy = WithDemotion(Waits(), Fcfs())
    plan = policy.plan(0.0, streams, Limits(free_blocks=1, total_blocks=13))
    assert ([r.request_id for r in plan.batch], [r.request_id for r in plan.preempted]) == (["a"], ["b"])


@pytest.mark.parametrize("policy", LLM_POLICIES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_live_requests_end_as_if_no_demoted_request_were_there(policy, data):
    """All live ones are there from the start, so that no step of demoted requests is under way when one comes."""
    blocks = data.draw(st.integers(30, 60))
    limits = Limits(
        max_resident=data.draw(st.integers(2, 6)),
        max_work=data.draw(st.integers(10, 40)),
        total_blocks=blocks,
        block_size=data.draw(st.integers(1, 4)),
        spare_blocks=data.draw(st.integers(0, 2)),
        can_split=True,
    )
    numbers = st.tuples(st.integers(1, 12), st.integers(1, 12), st.floats(0.05, 2.0))
    live = data.draw(st.lists(numbers, min_size=1, max_size=6))
    demoted = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(2, 12), st.booleans()), max_size=6))

    def ends(with_demoted: bool) -> dict[str, tuple[Outcome | None, int, float | None]]:
        others = []
        seats, free = limits.max_resident, limits.total_blocks
        for i, (size, tokens, is_running) in enumerate(demoted if with_demoted else ()):
            fits = seats > 0 and free >= limits.blocks(size + 1)
            others.append(prompt(f"d{i}", size, tokens, units=int(is_running and fits), arrival=i / 8))
            seats, free = (seats - 1, free - limits.blocks(size)) if is_running and fits else (seats, free)
        device = device_with(policy, limits, others)
        requests = [prompt(f"r{i}", size, tokens, due=due) for i, (size, tokens, due) in enumerate(live)]
        device.serve(requests)
        assert all(request.units == request.max_units for request in others)
        return {r.request_id: (r.outcome, r.units, r.last_unit_at) for r in requests}

    assert ends(True) == ends(False)


def test_free_memory_without_bounds_stays_without_bounds():
    streams = Streams(TABLE.modules)
    for request in (prompt("a", 4, 9, units=1), prompt("live", 4, 9)):
        streams.add(request)
    streams.demote(next(iter(streams["decode"])))
    plan = make_policy("fcfs", TABLE).plan(0.0, streams, Limits())
    assert Limits().free_blocks == UNLIMITED
    assert ([request.request_id for request in plan.batch], plan.preempted) == (["live"], ())
