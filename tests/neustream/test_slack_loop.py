"""slack on pipelines: whole traces computed by hand, what its forecast promises, and that it beats neustream."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from neustream import LatencyTable, Limits, Outcome, Request, ScaleSlo, Streams, make_policy
from neustream.goodput import GoodputCounter
from neustream.latency import BatchLatency
from neustream.policies.base import PolicyContext
from neustream.policies.slack import ways
from neustream.policies.slack.fit import FluidFit, Line, Needs, best_sizes, ranks
from neustream.policies.slack.loop import SlackLoop, seconds_by_batch
from neustream.route import pipeline_route
from neustream.slo import Deadlines
from neustream.testing import drive, fake_loop
from neustream.workload import gamma_arrivals, step_counts


def image(request_id: str, table: LatencyTable, arrival: float, steps: int, due: float) -> Request:
    return Request(request_id, arrival, Deadlines(due), pipeline_route(table.modules, steps))


def trace_of(table: LatencyTable, *requests: Request) -> list[tuple[float, str, list[str]]]:
    loop, clock = fake_loop(SlackLoop(table), table, lambda request: None)
    return drive(loop, clock, requests)


def test_requests_share_every_step_while_all_of_them_make_it(loop_table):
    """Two steps of 1.5 s for both, then one VAE step of 1 s: at 4 s, which leaves the reserve."""
    a = image("a", loop_table, 0.0, 2, due=4.1)
    b = image("b", loop_table, 0.0, 2, due=4.1)
    assert trace_of(loop_table, a, b) == [
        (0.0, "denoise", ["a", "b"]),
        (1.5, "denoise", ["a", "b"]),
        (3.0, "vae", ["a", "b"]),
    ]
    assert (a.outcome, b.outcome) == (Outcome.MET, Outcome.MET)


def test_whoever_would_break_a_promise_waits_until_it_fits(loop_table):
    """a may take 1.2 s for its second step, 1.4 s for its third: beside b each takes 1.5 s, so b runs after a."""
    a = image("a", loop_table, 0.0, 3, due=3.9)
    b = image("b", loop_table, 0.5, 2, due=10.0)
    assert trace_of(loop_table, a, b) == [
        (0.0, "denoise", ["a"]),
        (1.0, "denoise", ["a"]),
        (2.0, "denoise", ["a"]),
        (3.0, "vae", ["a"]),
        (3.5, "denoise", ["b"]),
        (4.5, "denoise", ["b"]),
        (5.5, "vae", ["b"]),
    ]
    assert (a.outcome, b.outcome) == (Outcome.MET, Outcome.MET)


@pytest.mark.parametrize(("others", "kept"), [("b", ["a"]), ("bc", ["b", "c"])])
def test_a_promise_is_broken_only_for_more_requests_than_it_keeps_out(others, kept):
    """a has begun and must run alone for 3 s; by then it is too late for the others, who could share each step."""
    table = LatencyTable("dit", "d", {"denoise": BatchLatency((1, 2, 3), (1.0, 1.5, 2.0))})
    streams = Streams(table.modules)
    a = image("a", table, 0.0, 4, due=4.2)
    a.advance(1.0)
    for request in (a, *(image(name, table, 1.0, 4, due=7.4) for name in others)):
        streams.add(request)
    plan = SlackLoop(table).plan(1.0, streams, Limits())
    assert [request.request_id for request in plan.batch] == kept


def test_of_those_who_cannot_all_be_kept_the_slack_and_the_nearly_done_go_first():
    """Twice the pace weighs as much as a quarter of the steps left."""
    of_slack, of_tight, of_done = ranks(needs_of((8, 16.0), (8, 8.0), (8, 8.0)), np.array([8.0, 8.0, 32.0]))
    assert of_slack == pytest.approx(2 * of_tight)
    assert of_done == pytest.approx(of_slack)


def test_turns_are_not_taken_in_small_batches_that_waste_the_device():
    """Pairs take no longer than one alone, but the tight one allows no pair: by turns it would hold up the others."""
    fit = FluidFit([0.0, 1.0, 1.1, 1.2], 3)
    tight, others = (4, 4.2), [(2, 9.9)] * 2
    assert fit.all_fit(needs_of(tight))
    assert fit.all_fit(needs_of(*others))
    assert not fit.all_fit(needs_of(tight, *others))


def test_a_slow_device_is_like_tighter_margins_in_every_layout(loop_table):
    """a and b would take 1.5 s a step together, 1.8 s on a device that is a fifth slower: 3.6 s and the VAE's."""
    streams = Streams(loop_table.modules)
    for name in "ab":
        streams.add(image(name, loop_table, 0.0, 2, due=4.6))
    slow = Limits(drift={"denoise": 1.2})
    sizes = [
        len(SlackLoop(loop_table, PolicyContext(handover=handover)).plan(0.0, streams, limits).batch)
        for handover, limits in ((0.0, Limits()), (0.0, slow), (1e-3, slow))
    ]
    assert sizes == [2, 1, 1]


def test_whoever_never_fits_is_rejected_once_it_could_not_make_it_even_alone(loop_table):
    """While a runs (until 3.5 s) b would take 2 + 0.5 s alone: its last chance ends at 2.5 s."""
    a = image("a", loop_table, 0.0, 3, due=4.0)
    b = image("b", loop_table, 0.5, 2, due=4.5)
    assert [step[1:] for step in trace_of(loop_table, a, b)] == [("denoise", ["a"])] * 3 + [("vae", ["a"])]
    assert (a.outcome, b.outcome) == (Outcome.MET, Outcome.REJECTED)
    assert b.reason == "due in 1.500 s, alone it takes 2.500 s"
    assert b.ended_at == 3.0


def test_more_than_a_batch_takes_turns_by_least_laxity():
    """Batches of 2 take 1 s; three requests of 2 steps make 6 visits: 3 s, if nobody idles."""
    table = LatencyTable("dit", "d", {"denoise": BatchLatency((1, 2), (1.0, 1.0))})
    requests = [image(name, table, 0.0, 2, due=3.1) for name in "abc"]
    assert trace_of(table, *requests) == [
        (0.0, "denoise", ["a", "b"]),
        (1.0, "denoise", ["c", "a"]),
        (2.0, "denoise", ["b", "c"]),
    ]
    assert all(request.outcome is Outcome.MET for request in requests)


def test_the_text_encoder_runs_for_those_who_will_join_the_loop_and_for_nobody_else():
    table = LatencyTable(
        "sd", "d", {"text_encoder": BatchLatency((1, 2), (0.5, 0.5)), "denoise": BatchLatency((1, 2), (1.0, 3.0))}
    )
    tightest = image("tightest", table, 0.0, 2, due=2.6)
    tight = image("tight", table, 0.0, 2, due=4.4)
    easy = image("easy", table, 0.0, 2, due=9.0)
    assert trace_of(table, tightest, tight, easy) == [
        (0.0, "text_encoder", ["tight", "easy"]),
        (0.5, "denoise", ["tight"]),
        (1.5, "denoise", ["tight"]),
        (2.5, "denoise", ["easy"]),
        (3.5, "denoise", ["easy"]),
    ]
    assert tightest.outcome is Outcome.REJECTED  # beside it, one of the others would have missed


def test_a_process_of_one_module_serves_the_most_urgent_first_in_batches_that_the_tightest_can_take(loop_table):
    streams = Streams(loop_table.modules)
    waiting = [image(name, loop_table, 0.0, 1, due) for name, due in (("a", 5.0), ("b", 2.1), ("c", 2.6))]
    for request in waiting:
        request.advance(1.0)
        streams.add(request)
    plan = SlackLoop(loop_table, PolicyContext(handover=0.035)).plan(1.5, streams, Limits())
    assert (plan.module, [request.request_id for request in plan.batch]) == ("vae", ["b"])
    plan = SlackLoop(loop_table, PolicyContext(handover=0.035)).plan(1.0, streams, Limits())
    assert [request.request_id for request in plan.batch] == ["b", "c"]


def test_a_hopeless_request_before_the_loop_changes_nothing_for_those_in_it():
    table = LatencyTable(
        "sd", "d", {"text_encoder": BatchLatency((1, 2), (0.5, 0.5)), "denoise": BatchLatency((1, 2), (1.0, 3.0))}
    )
    streams = Streams(table.modules)
    hopeless, begun = image("hopeless", table, 0.0, 9, due=2.0), image("begun", table, 0.0, 2, due=4.0)
    begun.advance(0.5)
    streams.add(hopeless)
    streams.add(begun)
    plan = SlackLoop(table).plan(0.5, streams, Limits())
    assert (plan.module, plan.batch) == ("denoise", (begun,))
    assert [rejection.request for rejection in plan.rejected] == [hopeless]


def test_what_is_remembered_of_routes_changes_no_decision(loop_table, monkeypatch):
    """Only b, which passes no VAE after the loop, has time to spare: also where one route at a time is remembered."""
    batches = []
    for memo in (4096, 0):
        monkeypatch.setattr(ways, "MAX_MEMO", memo)
        streams = Streams(loop_table.modules)
        for name, modules in (("a", ("denoise", "vae")), ("b", ("denoise",)), ("c", ("denoise", "vae"))):
            streams.add(Request(name, 0.0, Deadlines(2.6), pipeline_route(modules, 2)))
        plan = SlackLoop(loop_table).plan(0.0, streams, Limits())
        batches.append([request.request_id for request in plan.batch])
    assert batches == [["b"], ["b"]]


def test_a_batch_never_exceeds_what_was_measured_nor_what_memory_holds(loop_table):
    streams = Streams(loop_table.modules)
    for i in range(9):
        streams.add(image(f"r{i}", loop_table, 0.0, 2, due=1000.0))
    assert len(SlackLoop(loop_table).plan(0.0, streams, Limits()).batch) == 4
    assert len(SlackLoop(loop_table).plan(0.0, streams, Limits(max_batch={"denoise": 3})).batch) == 3


@pytest.mark.parametrize("options", [{"slo_scale": 0.5}, {"handover": -1.0}])
def test_options_out_of_range_are_refused(loop_table, options):
    with pytest.raises(ValueError, match="must be at least"):
        make_policy("slack", loop_table, **options)


def test_step_seconds_never_fall_with_the_batch():
    table = LatencyTable("dit", "d", {"denoise": BatchLatency((1, 2, 3), (1.0, 0.9, 1.2))})
    assert seconds_by_batch(table, "denoise") == [0.0, 1.0, 1.0, 1.2]


jobs_of = st.lists(
    st.builds(lambda steps, pace: (steps, steps * pace), st.integers(1, 4), st.floats(1.0, 4.0)), min_size=1, max_size=3
)
"""Steps and margins, few of them out of reach."""


def needs_of(*jobs: tuple[int, float]) -> Needs:
    """Of requests with so many steps left and such margins."""
    return Needs.made([steps for steps, _ in jobs], [margin for _, margin in jobs], [0.0] * len(jobs))


def is_feasible(left: tuple[int, ...], margins: tuple[float, ...], seconds: list[float], now: float = 0.0) -> bool:
    """Whether any sequence of batches finishes all in time, by trying every one."""
    live = [i for i, steps in enumerate(left) if steps]
    if not live:
        return True
    if any(now + left[i] * seconds[1] > margins[i] + 1e-9 for i in live):
        return False
    for size in range(min(len(live), len(seconds) - 1), 0, -1):
        for batch in combinations(live, size):
            after = tuple(steps - (i in batch) for i, steps in enumerate(left))
            end = now + seconds[size]
            in_time = all(end <= margins[i] + 1e-9 for i in batch if not after[i])
            if in_time and is_feasible(after, margins, seconds, end):
                return True
    return False


@given(jobs_of, st.lists(st.floats(0.0, 0.6), min_size=2, max_size=2))
@settings(max_examples=80, deadline=None)
def test_what_is_said_to_fit_can_be_scheduled_to_within_a_step(drawn, rises):
    seconds = [0.0, 1.0, 1.0 + rises[0], 1.0 + sum(rises)]
    assume(FluidFit(seconds, 3).all_fit(needs_of(*drawn)))
    assert is_feasible(tuple(steps for steps, _ in drawn), tuple(margin + seconds[3] for _, margin in drawn), seconds)


@given(jobs_of)
@settings(max_examples=60, deadline=None)
def test_leaving_somebody_out_never_makes_the_others_miss(drawn):
    fit = FluidFit([0.0, 1.0, 1.5, 2.0], 3)
    assume(fit.all_at_ease(needs_of(*drawn)))
    assert fit.all_fit(needs_of(*drawn))
    assert all(fit.all_fit(needs_of(*drawn[:i], *drawn[i + 1 :])) for i in range(len(drawn)))


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.5, 40.0), st.floats(0.0, 0.5)), min_size=1, max_size=12),
    st.integers(1, 6),
    st.integers(0, 12),
)
@settings(max_examples=80, deadline=None)
def test_a_line_keeps_a_run_that_fits_whatever_is_tried_first(drawn, largest, guess):
    """What a line says of its runs by bounds and by orders made once is what the two schedules say of each."""
    fit = FluidFit([0.0, 1.0, 1.4, 1.6, 2.1, 2.9, 3.1], largest)
    needs = Needs.made(*zip(*drawn, strict=True))
    fits = [fit.all_fit(needs.of(slice(count))) for count in range(len(drawn) + 1)]
    kept, tried = Line(fit, needs).keep(guess, 2)
    assert fit.all_fit(needs.of(kept))
    run = tried - 3
    assert kept[:run].tolist() == list(range(run))
    assert fits[run]
    assert run == len(drawn) or not fits[run + 1]
    assert len(kept) <= tried - 1


CURVES = {
    "flat": (0.8, 0.01),
    "half": (0.5, 0.02),
    "steep": (0.1, 0.03),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize(("load", "cv", "scale"), [(0.7, 4.0, 3.0), (1.0, 1.0, 3.0), (1.3, 2.0, 1.5), (2.5, 2.0, 3.0)])
def test_slack_meets_at_least_as_many_as_neustream_and_gives_up_no_more_that_had_begun(curve, load, cv, scale):
    """A made-up pipeline whose lone step is 0.1 s, at `load` times what it sustains one by one."""
    fixed, tail = CURVES[curve]
    sizes = tuple(range(1, 13))
    table = LatencyTable(
        "made-up",
        "d",
        {
            "denoise": BatchLatency(sizes, tuple(0.1 * (fixed + (1 - fixed) * b) for b in sizes)),
            "vae": BatchLatency(sizes, tuple(tail * (0.3 + 0.7 * b) for b in sizes)),
        },
    )
    good, begun = {}, {}
    for name in ("neustream", "slack"):
        counter = GoodputCounter()
        loop, clock = fake_loop(make_policy(name, table, slo_scale=scale), table, counter.on_end)
        arrivals = gamma_arrivals(load / (20 * 0.1), cv, 60, seed=1)
        requests = []
        for i, (arrival, steps) in enumerate(zip(arrivals.tolist(), step_counts(15, 26, 60, 0).tolist(), strict=True)):
            route = pipeline_route(table.modules, steps)
            requests.append(Request(str(i), arrival, ScaleSlo(scale).bind(arrival, route, 1, table), route))
        drive(loop, clock, requests)
        good[name] = counter.outcomes[Outcome.MET]
        rejected = (request for request in requests if request.outcome is Outcome.REJECTED)
        begun[name] = sum(request.left != [stage.visits for stage in request.route] for request in rejected)
    assert good["slack"] >= good["neustream"]
    assert begun["slack"] <= begun["neustream"]
    assert counter.outcomes[Outcome.LATE] == 0


def test_a_request_that_is_past_its_time_fits_no_batch():
    fit = FluidFit([0.0, 1.0, 1.5, 2.0], 3)
    sizes = [fit.turn_size(needs_of(*[(1, margin)] * 3)) for margin in (-0.5, 0.0, 0.5, 1.0, 2.0)]
    assert sizes == [0, 0, 0, 1, 3]


def test_the_best_batch_is_the_one_that_does_most_per_second():
    """Batches of 3 take as long as 1.5 batches of 2: 2 do more per second; 4 do most."""
    assert best_sizes([0.0, 1.0, 1.2, 2.0, 2.2]) == [0, 1, 2, 2, 4]


def test_three_take_turns_in_pairs_where_pairs_do_more_per_second():
    """Together they would need 2 steps of 3 s; in pairs, 3 steps of 1 s."""
    table = LatencyTable("dit", "d", {"denoise": BatchLatency((1, 2, 3), (1.0, 1.0, 3.0))})
    requests = [image(name, table, 0.0, 2, due=6.0) for name in "abc"]
    assert trace_of(table, *requests) == [
        (0.0, "denoise", ["a", "b"]),
        (1.0, "denoise", ["c", "a"]),
        (2.0, "denoise", ["b", "c"]),
    ]
