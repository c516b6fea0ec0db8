"""slack on language models: whole traces computed by hand, its forecast, and that it beats neustream."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neustream import LatencyTable, Limits, Outcome, Request, ScaleSlo, Streams, make_policy
from neustream.goodput import GoodputCounter
from neustream.latency import ContextLatency, Shape, TokensLatency
from neustream.policies.slack.forecast import DecodeForecast
from neustream.policies.slack.llm import SlackLlm
from neustream.route import llm_route
from neustream.slo import Deadlines
from neustream.testing import drive, fake_loop
from neustream.workload import gamma_arrivals, prompt_lengths

Trace = list[tuple[float, str, list[str]]]


def prompt(name: str, arrival: float, size: int, tokens: int, first: float, pace=0.0, last=math.inf) -> Request:
    return Request(name, arrival, Deadlines(first, pace, 0.0, last), llm_route(tokens), size)


def trace_of(table: LatencyTable, *requests: Request, limits: Limits | None = None) -> Trace:
    loop, clock = fake_loop(SlackLlm(table), table, lambda request: None, limits)
    return drive(loop, clock, requests)


def test_a_prompt_is_prefilled_at_once_where_every_running_request_can_afford_it(llm_table):
    """a has its second token due at 0.6 s; b's prefill (0.2 s) and a decode step are over at 0.5 s."""
    a = prompt("a", 0.0, 10, 3, first=0.4, pace=0.2)
    b = prompt("b", 0.1, 10, 2, first=0.6, pace=0.2)
    assert trace_of(llm_table, a, b) == [
        (0.0, "prefill", ["a"]),
        (0.2, "prefill", ["b"]),
        (0.4, "decode", ["a", "b"]),
        (0.5, "decode", ["a"]),
    ]
    assert (a.outcome, b.outcome) == (Outcome.MET, Outcome.MET)


def test_a_prefill_waits_until_decoding_has_earned_the_slack_for_it(llm_table):
    """a's second token is due at 0.45 s: first a step, which puts the third one's deadline at 0.85 s."""
    a = prompt("a", 0.0, 10, 4, first=0.25, pace=0.2)
    a.deadlines = Deadlines(0.25, 0.3)
    b = prompt("b", 0.1, 20, 2, first=0.9, pace=0.2)
    assert trace_of(llm_table, a, b) == [
        (0.0, "prefill", ["a"]),
        (0.2, "decode", ["a"]),
        (0.3, "prefill", ["b"]),
        (0.6, "decode", ["a", "b"]),
        (0.7, "decode", ["a"]),
    ]
    assert (a.outcome, b.outcome) == (Outcome.MET, Outcome.MET)


def test_whoever_would_miss_its_own_deadline_in_a_joint_prefill_goes_alone(llm_table):
    a = prompt("a", 0.0, 10, 1, first=0.25)
    b = prompt("b", 0.0, 30, 1, first=0.9)
    assert trace_of(llm_table, a, b) == [(0.0, "prefill", ["a"]), (0.2, "prefill", ["b"])]
    assert (a.outcome, b.outcome) == (Outcome.MET, Outcome.MET)


def test_nobody_is_admitted_whose_context_would_slow_a_promise_beyond_its_last_deadline():
    """Steps of 0.1 s + 1 ms a unit of context. Alone a's 4 steps take 0.45 s; with b's 90 units, 0.82 s."""
    table = LatencyTable("m", "d", {"prefill": TokensLatency((0.1, 0.0, 0.0)), "decode": ContextLatency((0.1, 0.001))})

    def both(last: float) -> Trace:
        a = prompt("a", 0.0, 10, 5, first=0.5, pace=0.5, last=last)
        return trace_of(table, a, prompt("b", 0.05, 90, 5, first=0.7, pace=0.5))

    assert [ids for _, _, ids in both(last=1.1)][:2] == [["a"], ["b"]]
    assert [ids for _, _, ids in both(last=0.7)][:5] == [["a"]] * 5


def test_a_late_request_that_can_catch_up_is_served_by_an_idle_device(llm_table):
    """0.1 s late at best, 0.1 s earned a step: the third of its 20 tokens is in time."""
    late = prompt("late", 0.0, 10, 20, first=0.05, pace=0.2)
    trace = trace_of(llm_table, late)
    assert trace[0] == (0.0, "prefill", ["late"])
    assert (late.outcome, late.units, late.units_on_time) == (Outcome.LATE, 20, 18)


def test_a_late_request_that_cannot_catch_up_is_rejected(llm_table):
    slow = prompt("slow", 0.0, 10, 20, first=0.05, pace=0.1)
    assert trace_of(llm_table, slow) == []
    assert slow.outcome is Outcome.REJECTED
    assert slow.reason == "first unit due in 0.050 s, prefill alone takes 0.200 s: too late to catch up"


def test_a_preempted_request_that_cannot_catch_up_is_served_once_it_has_waited_as_long_as_it_takes_alone(llm_table):
    """Its prefill of 16 tokens takes 0.26 s and its other 33 tokens 3.3 s; a fresh prompt comes every 20 steps."""
    lost = prompt("lost", 0.0, 10, 40, first=0.01, pace=0.001)
    for _ in range(6):
        lost.advance(0.0)
    lost.preempt()
    fresh = [prompt(f"f{i}", 2.0 * i, 10, 40, first=2.0 * i + 0.6, pace=0.2) for i in range(60)]
    loop, clock = fake_loop(SlackLlm(llm_table), llm_table, lambda request: None)
    loop.streams.add(lost)
    fresh[0].advance(0.0)
    loop.streams.add(fresh[0])
    trace = drive(loop, clock, fresh[1:])
    served = next(start for start, module, ids in trace if module == "prefill" and "lost" in ids)
    assert 3.56 <= served < 3.7
    assert (lost.outcome, lost.units) == (Outcome.LATE, 40)
    # Two of the others were waiting for their turn behind it.
    assert sum(request.outcome is Outcome.MET for request in fresh) >= 58


def test_while_an_overdue_request_lacks_memory_nobody_new_is_prefilled(llm_table):
    """b holds 24 of 40 blocks; the preempted one needs 18 and one to grow, a fresh prompt would need 2."""
    policy, streams = SlackLlm(llm_table), Streams(llm_table.modules)
    b, lost = prompt("b", 0.0, 23, 40, first=99.0, pace=1.0), prompt("lost", 0.0, 10, 40, first=0.01, pace=0.001)
    b.advance(0.0)
    for _ in range(8):
        lost.advance(0.0)
    lost.preempt()
    for request in (b, lost, prompt("fresh", 0.0, 2, 4, first=99.0, pace=1.0)):
        streams.add(request)
    for now, free, batch in ((1.0, 16, ["fresh"]), (9.0, 16, ["b"]), (9.0, 18, ["lost"])):
        plan = policy.plan(now, streams, Limits(free_blocks=free, total_blocks=90))
        assert [request.request_id for request in plan.batch] == batch


def test_those_in_time_go_before_the_late(llm_table):
    late = prompt("late", 0.0, 10, 40, first=0.1, pace=0.3)
    fresh = prompt("fresh", 0.0, 10, 2, first=0.25, pace=0.3)
    assert trace_of(llm_table, late, fresh)[:2] == [(0.0, "prefill", ["fresh"]), (0.2, "prefill", ["late"])]
    assert fresh.outcome is Outcome.MET


@pytest.mark.parametrize(
    "limits",
    [Limits(max_resident=2), Limits(max_work=25), Limits(free_blocks=6, block_size=4)],
    ids=["seats", "work", "memory"],
)
def test_a_prefill_stays_within_the_limits(llm_table, limits):
    requests = [prompt(name, 0.0, 10, 1, first=9.0) for name in "abcd"]
    assert [ids for _, _, ids in trace_of(llm_table, *requests, limits=limits)] == [["a", "b"], ["c", "d"]]


def test_nobody_is_admitted_for_whose_growth_there_will_be_no_memory(llm_table):
    """Of 30 units of context, a will need 10 + 10; b would need 15."""
    a, b = prompt("a", 0.0, 10, 10, first=9.0), prompt("b", 0.0, 10, 5, first=9.0)
    limits = Limits(total_blocks=30, free_blocks=30)
    trace = trace_of(llm_table, a, b, limits=limits)
    assert trace[0] == (0.0, "prefill", ["a"])
    assert trace[1][1:] == ("decode", ["a"])


def test_a_device_slower_than_its_table_is_believed(llm_table):
    streams = Streams(llm_table.modules)
    a, b = prompt("a", 0.0, 10, 5, first=0.4, pace=0.2), prompt("b", 0.1, 10, 2, first=0.9, pace=0.2)
    a.advance(0.2)
    for request in (a, b):
        streams.add(request)
    policy = SlackLlm(llm_table)
    assert policy.plan(0.25, streams, Limits(drift={"prefill": 1.0, "decode": 1.0})).module == "prefill"
    assert policy.plan(0.25, streams, Limits(drift={"decode": 1.6})).module == "decode"
    assert policy.plan(0.25, streams, Limits(drift={"prefill": 1.3})).module == "decode"


def decode_alone(table: LatencyTable, members: list[tuple[int, int]]) -> list[float]:
    """When each of `(steps, context)` is done if all decode side by side, step by step."""
    ends, now = [0.0] * len(members), 0.0
    live = [[i, steps, context] for i, (steps, context) in enumerate(members)]
    while live:
        now += table["decode"].predict(Shape(len(live), 0, 0, sum(context for _, _, context in live)))
        for row in live:
            row[1] -= 1
            row[2] += 1
            ends[row[0]] = now
        live = [row for row in live if row[1]]
    return ends


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 100)), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_the_forecast_is_what_decoding_step_by_step_comes_to(drawn):
    model = ContextLatency((0.03, 1e-4), (1, 4, 8), (0.03, 0.05, 0.09))
    table = LatencyTable("m", "d", {"decode": model})
    ends = decode_alone(table, drawn)
    forecast = DecodeForecast(model)
    exact = [(steps, context, 1, end + 1e-9) for (steps, context), end in zip(drawn, ends, strict=True)]
    assert forecast.holds(0.0, exact, [], Limits())
    for i, (steps, context, width, due) in enumerate(exact):
        missed = [*exact[:i], (steps, context, width, due - 1e-6), *exact[i + 1 :]]
        assert not forecast.holds(0.0, missed[1:], missed[:1], Limits())


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 100)), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_the_forecast_of_memory_covers_the_fullest_step(drawn):
    live, peak = list(drawn), 0
    while live:
        live = [(steps - 1, context + 1) for steps, context in live]
        peak = max(peak, sum(context for _, context in live))
        live = [row for row in live if row[0]]
    members = [(steps, context, 1, math.inf) for steps, context in drawn]
    forecast = DecodeForecast(ContextLatency((0.03, 1e-4)))
    assert not forecast.holds(0.0, members, [], Limits(total_blocks=peak - 1))
    assert forecast.holds(0.0, members, [], Limits(total_blocks=peak + len(drawn)))


TABLE = LatencyTable(
    "made-up",
    "d",
    {"prefill": TokensLatency((0.02, 4e-4, 0.0)), "decode": ContextLatency((0.05, 1.5e-5), (1, 64), (0.05, 0.06))},
)


@pytest.mark.parametrize("pslo", [1.5, 3.0])
@pytest.mark.parametrize("rate", [2.0, 4.0, 8.0])
def test_slack_meets_at_least_as_many_as_neustream_and_whoever_was_in_time_at_first_stays_so(rate, pslo):
    good, tokens = {}, {}
    for name in ("neustream", "slack"):
        counter = GoodputCounter()
        late: list[Request] = []

        def end(request: Request, counter=counter, late=late) -> None:
            counter.on_end(request)
            started_in_time = request.first_unit_at is not None and request.first_unit_at <= request.deadlines.at(1)
            if started_in_time and request.outcome is not Outcome.MET:
                late.append(request)

        loop, clock = fake_loop(make_policy(name, TABLE), TABLE, end, Limits(max_resident=256, max_work=2048))
        requests = []
        for i, arrival in enumerate(gamma_arrivals(rate, 1.0, 100, seed=0).tolist()):
            size, route = int(prompt_lengths(100, seed=0)[i]), llm_route(60)
            deadlines = ScaleSlo(pslo, 1.5).bind(arrival, route, size, TABLE)
            requests.append(Request(str(i), arrival, deadlines, route, size))
        drive(loop, clock, requests)
        good[name], tokens[name] = counter.outcomes[Outcome.MET], counter.units_on_time
    assert good["slack"] > good["neustream"]
    assert tokens["slack"] >= 0.98 * tokens["neustream"]
    assert late == []
