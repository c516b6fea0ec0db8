"""slack on a device whose steps may mix: on states computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neustream import AbsoluteSlo, LatencyTable, Limits, Request, Streams, make_policy
from neustream.cost import StepPrice
from neustream.latency import ContextLatency, TokensLatency
from neustream.plan import StepPlan
from neustream.policies.mixed_step import MixedStep
from neustream.policies.slack.demand import Demand, accept
from neustream.policies.slack.mixed import BY_LENGTH, MARGIN
from neustream.route import DECODE, llm_route

# A prompt token takes 1 ms, a decode step 20 ms whatever its batch; context next to nothing, but more than nothing.
TABLE = LatencyTable("m", "d", {"prefill": TokensLatency((0.0, 0.001, 0.0)), "decode": ContextLatency((0.02, 1e-9))})
ROOMY = Limits(can_split=True)


def prompt(name: str, size: int, ttft: float, tpot: float = 0.1, arrival: float = 0.0) -> Request:
    route = llm_route(40)
    return Request(name, arrival, AbsoluteSlo(ttft, tpot).bind(arrival, route, size, TABLE), route, size)


def decoding(name: str, ttft: float, tpot: float = 0.1, ends: tuple[float, ...] = (0.0,)) -> Request:
    """One that has delivered a unit at each of `ends`."""
    request = prompt(name, 10, ttft, tpot)
    for at in ends:
        request.advance(at)
    return request


def planned(now: float, *requests: Request, limits: Limits = ROOMY, **options: object) -> StepPlan:
    streams = Streams(TABLE.modules)
    for request in requests:
        streams.add(request)
    return make_policy("slack", TABLE, **options).plan(now, streams, limits)


def pieces(plan: StepPlan) -> dict[str, int]:
    return {piece.request.request_id: piece.work for piece in plan.pieces}


def test_a_piece_is_no_larger_than_the_next_deadline_of_a_promise_leaves_room_for():
    """The next token is due at 0.1 s, of which 5 % stay free: 94 tokens and the context, one of them decoded."""
    plan = planned(0.0, decoding("d", 0.001), prompt("p", 500, 9.0))
    assert (plan.module, [r.request_id for r in plan.batch]) == (DECODE, ["d"])
    assert pieces(plan) == {"p": 93}


def test_a_lead_that_came_with_the_first_token_is_not_spent_unless_asked_for():
    """The first token was due at 2 s and came at once: by the SLO the next one has 2.1 s, by its own pace 0.1 s."""
    early, waiting = decoding("d", 2.0), prompt("p", 500, 9.0)
    assert pieces(planned(0.0, early, waiting)) == {"p": 93}
    assert pieces(planned(0.0, early, waiting, own_pace=False)) == {"p": 500}


def test_whole_prompts_where_the_device_cannot_split_them():
    plan = planned(0.0, decoding("d", 0.001), prompt("p", 500, 9.0), limits=Limits())
    assert (plan.module, plan.pieces) == (DECODE, ())
    plan = planned(0.0, prompt("p", 500, 9.0), limits=Limits())
    assert (plan.module, plan.pieces) == ("prefill", ())


def test_where_not_all_prompts_can_be_in_time_the_longest_waits_and_is_no_reason_to_reject():
    plan = planned(0.0, prompt("long", 900, 1.0), prompt("a", 300, 1.0), prompt("b", 400, 1.01))
    assert pieces(plan) == {"a": 300, "b": 400}
    assert not plan.rejected


@pytest.mark.parametrize(("fairness", "kept"), [(0.0, ["a", "b"]), (1.0, ["long"])])
def test_with_fairness_it_is_the_last_that_is_dropped(fairness, kept):
    waiting = [prompt("long", 800, 1.0), prompt("a", 300, 1.01), prompt("b", 300, 1.02)]
    streams = Streams(TABLE.modules)
    step = MixedStep(StepPrice(TABLE), streams, ROOMY, ())
    demand = Demand(step, waiting, ROOMY, lead=0.0, pace=0.1, reserve=0.05)
    assert [r.request_id for r in accept(0.0, waiting, demand, MARGIN, fairness)] == kept


def test_what_has_begun_is_dropped_last():
    begun = prompt("begun", 900, 1.0)
    begun.process(50)
    assert set(pieces(planned(0.0, begun, prompt("a", 300, 1.0)))) == {"begun"}


def test_a_prompt_that_can_no_longer_be_in_time_is_rejected_and_the_reason_says_by_how_much():
    plan = planned(0.0, prompt("p", 500, 0.1))
    assert [r.reason for r in plan.rejected] == [
        "first unit due in 0.100 s, prefill alone takes 0.500 s: too late to catch up"
    ]


def test_a_running_request_that_cannot_catch_up_goes_on_until_another_could_be_in_time():
    hopeless = decoding("h", 0.001, tpot=0.021, ends=(0.0,))
    assert not planned(9.0, hopeless).rejected
    plan = planned(9.0, hopeless, prompt("p", 100, 1.0, arrival=9.0))
    assert [r.request.request_id for r in plan.rejected] == ["h"]
    assert (pieces(plan), plan.batch) == ({"p": 100}, ())


def test_a_preempted_request_is_never_rejected():
    preempted = decoding("x", 0.001, ends=(0.0, 0.1))
    preempted.preempt()
    plan = planned(50.0, preempted, prompt("p", 100, 1.0, arrival=50.0))
    assert not plan.rejected
    assert next(iter(pieces(plan))) == "x"


def test_nobody_begins_for_whose_output_there_is_no_memory():
    """Of 10 blocks of 16, one runs with 9 to come. Another would need 1 for its prompt and 3 with its output."""
    limits = replace(ROOMY, block_size=16, total_blocks=6, free_blocks=5)
    running = decoding("d", 0.001, ends=(0.0,))
    assert pieces(planned(0.0, running, prompt("p", 10, 9.0), limits=limits)) == {}
    assert pieces(planned(0.0, running, prompt("p", 10, 9.0), limits=replace(limits, total_blocks=10, free_blocks=9)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fairness": 2}, "fairness must be at most 1, got 2"),
        ({"fairness": "x"}, "fairness must be a number of at least 0, got 'x'"),
        ({"own_pace": 1}, "own_pace must be true or false, got 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make_policy("slack", TABLE, **options)


def test_the_second_order_puts_long_prompts_later():
    """By deadline 800 + 300 tokens do not fit before 1.05 s; where 2 ms count for each token, the short come first."""
    assert BY_LENGTH * 500 > 0.9
    plan = planned(0.0, prompt("long", 800, 1.0), prompt("a", 300, 1.05), prompt("b", 300, 1.1), prompt("c", 300, 1.2))
    assert set(pieces(plan)) == {"a", "b", "c"}


@pytest.mark.parametrize(("tpot", "module"), [(1.0, "prefill"), (0.5, "decode")])
def test_a_prefill_goes_alone_where_only_so_its_first_token_is_in_time_and_nobody_else_is_late(tpot, module):
    """300 tokens take 0.3 s alone, 0.5 s beside a decode that reads its context in 0.2 s. A decode follows: 0.25 s."""
    table = LatencyTable("m", "d", {"prefill": TABLE["prefill"], "decode": ContextLatency((0.02, 1e-4))})
    streams = Streams(table.modules)
    running = prompt("d", 2000, 0.001, tpot)
    running.advance(0.0)
    streams.add(running)
    streams.add(prompt("p", 300, 0.4, tpot=1.0))
    plan = make_policy("slack", table).plan(0.0, streams, ROOMY)
    assert plan.module == module
    assert [request.request_id for request in plan.batch] == (["p"] if module == "prefill" else ["d"])
