"""chunked: whole traces computed by hand, and what a step with pieces of prompts costs."""

from __future__ import annotations

import pytest

from neustream import LatencyTable, Limits, Outcome, Request, Streams, make_policy
from neustream.latency import ContextLatency, TokensLatency
from neustream.plan import StepPlan
from neustream.policies.chunked import Chunked
from neustream.route import llm_route
from neustream.slo import NO_DEADLINES
from neustream.testing import fake_loop


@pytest.fixture
def table() -> LatencyTable:
    """A prefill takes 10 ms a token, a decode step 100 ms + 1 ms a unit of context."""
    modules = {"prefill": TokensLatency((0.0, 0.01, 0.0)), "decode": ContextLatency((0.1, 0.001))}
    return LatencyTable("m", "d", modules)


def prompt(name: str, size: int, tokens: int) -> Request:
    return Request(name, 0.0, NO_DEADLINES, llm_route(tokens), size)


def steps_of(table: LatencyTable, policy: Chunked, requests: list[Request], limits: Limits | None = None):
    """Each step as `(end, module, decodes, {request: piece})`, with all requests there from the start."""
    steps = []
    loop, clock = fake_loop(policy, table, lambda request: None, limits)
    for request in requests:
        loop.streams.add(request)
    while len(loop.streams):
        plan = loop.step()
        pieces = {piece.request.request_id: piece.work for piece in plan.pieces}
        steps.append((round(clock.now, 9), plan.module, [request.request_id for request in plan.batch], pieces))
        loop.streams.check_integrity()
    return steps


def test_prompts_are_cut_to_the_budget_and_decodes_never_pause(table):
    """The second step is a prefill of 10 tokens (0.1 s) that reads a's 6 and b's 5 units of context (11 ms).

    Each of b's nine tokens attends to its five earlier ones besides: 45 pairs of 0.001 · 0.01 / 0.1 = 0.1 ms.
    """
    requests = [prompt("a", 5, 4), prompt("b", 16, 2)]
    assert steps_of(table, Chunked(table, budget=10), requests) == [
        (0.1, "prefill", [], {"a": 5, "b": 5}),
        (0.2155, "decode", ["a"], {"b": 9}),
        (0.3393, "decode", ["a"], {"b": 2}),
        (0.4643, "decode", ["a", "b"], {}),
    ]
    assert all(request.outcome is Outcome.MET for request in requests)


def test_prompts_that_are_partly_done_go_before_new_ones(table):
    requests = [prompt("long", 9, 1), prompt("short", 2, 1)]
    assert [step[3] for step in steps_of(table, Chunked(table, budget=6), requests)] == [
        {"long": 6},
        {"long": 3, "short": 2},
    ]


def test_a_mixed_step_is_never_cheaper_than_its_decodes_alone(table):
    requests = [prompt("a", 5, 3), prompt("b", 1, 1)]
    first, second, *_ = steps_of(table, Chunked(table, budget=5), requests)
    assert first == (0.05, "prefill", [], {"a": 5})
    assert second == (0.156, "decode", ["a"], {"b": 1})  # 0.1 + 6 units, not 2 tokens + 6 units


@pytest.mark.parametrize(
    "limits",
    [Limits(max_resident=1), Limits(free_blocks=6), Limits(free_blocks=7, spare_blocks=1)],
    ids=["seats", "memory", "spare memory"],
)
def test_a_prompt_waits_for_a_seat_and_for_memory(table, limits):
    streams = Streams(table.modules)
    for request in (prompt("a", 5, 1), prompt("b", 5, 1)):
        streams.add(request)
    plan = Chunked(table).plan(0.0, streams, limits)
    assert [piece.request.request_id for piece in plan.pieces] == ["a"]


def test_a_step_takes_no_more_work_than_the_device_allows(table):
    streams = Streams(table.modules)
    streams.add(prompt("a", 50, 1))
    plan = Chunked(table).plan(0.0, streams, Limits(max_work=8))
    assert (plan.module, plan.batch, [piece.work for piece in plan.pieces]) == ("prefill", (), [8])


def test_with_nothing_to_run_it_idles(table):
    assert Chunked(table).plan(0.0, Streams(table.modules), Limits()) == StepPlan()


def test_a_budget_below_one_token_is_refused(table):
    with pytest.raises(ValueError, match="budget must be a whole number of at least 1, got 0"):
        make_policy("chunked", table, budget=0)
