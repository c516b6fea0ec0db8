"""An SLO says when unit k is due; a request carries all of its progress."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neustream import AbsoluteSlo, LatencyTable, Outcome, Request, ScaleSlo, Stage, parse_slo
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.route import llm_route, pipeline_route
from neustream.slo import NO_DEADLINES, SLO_KEYS, Deadlines, DueSlo

TABLE = LatencyTable("m", "d", {"prefill": TokensLatency((0.1, 0.01, 0.0)), "decode": ContextLatency((0.1, 0.001))})


@given(st.integers(1, 500), st.integers(1, 400), st.floats(0.001, 1), st.floats(0, 0.01), st.floats(1, 4))
def test_token_deadlines_are_the_scaled_sum_of_standalone_decode_steps(k, length, base, slope, dslo):
    table = LatencyTable(
        "m", "d", {"prefill": TokensLatency((0.1, 0.01, 0.0)), "decode": ContextLatency((base, slope))}
    )
    deadlines = ScaleSlo(3.0, dslo).bind(10.0, llm_route(600), length, table)
    alone = sum(base + slope * (length + j - 1) for j in range(2, k + 1))
    assert deadlines.at(k) == pytest.approx(10.0 + 3.0 * (0.1 + 0.01 * length) + dslo * alone)


def test_an_images_deadline_scales_the_whole_pipeline(loop_table):
    deadlines = ScaleSlo(3.0).bind(1.0, pipeline_route(("denoise", "vae"), 10), 1, loop_table)
    assert deadlines.at(1) == pytest.approx(1.0 + 3.0 * (10 * 1.0 + 0.5))


def test_absolute_slos_bound_the_first_token_every_token_and_the_end():
    route = llm_route(100)
    both = AbsoluteSlo(ttft=0.2, tpot=0.05).bind(1.0, route, 8, None)
    assert [both.at(k) for k in (1, 2, 11)] == pytest.approx([1.2, 1.25, 1.7])
    ends = AbsoluteSlo(ttft=0.2, tpot=0.05, e2el=0.3).bind(1.0, route, 8, None)
    assert [ends.at(k) for k in (1, 2, 11)] == pytest.approx([1.2, 1.25, 1.3])
    first = AbsoluteSlo(ttft=0.2).bind(1.0, route, 8, None)
    assert [first.at(k) for k in (1, 2)] == [1.2, math.inf]
    end = AbsoluteSlo(e2el=2.0).bind(1.0, route, 8, None)
    assert [end.at(k) for k in (1, 2, 100)] == [3.0, 3.0, 3.0]


def test_only_a_time_per_token_gives_deadlines_a_pace():
    route = llm_route(100)
    paces = [
        AbsoluteSlo(*times).bind(1.0, route, 8, None).pace for times in ((0.2,), (0.2, math.inf, 5.0), (0.2, 0.05))
    ]
    assert paces == [None, None, 0.05]
    assert AbsoluteSlo(e2el=5.0).bind(1.0, route, 8, None).pace is None
    assert NO_DEADLINES.pace is None


def test_without_an_slo_nothing_is_ever_due():
    assert NO_DEADLINES.at(1) == NO_DEADLINES.at(1000) == math.inf


@pytest.mark.parametrize(
    ("fields", "slo"),
    [
        ({"ttft_ms": 200, "tpot_ms": 50, "e2el_ms": 5000}, AbsoluteSlo(0.2, 0.05, 5.0)),
        ({"e2el_ms": 5000}, AbsoluteSlo(e2el=5.0)),
        ({"pslo": 3, "dslo": 1.5}, ScaleSlo(3.0, 1.5)),
        ({"slo_scale": 2}, ScaleSlo(2.0)),
    ],
)
def test_an_slo_is_read_from_its_outside_form(fields, slo):
    assert parse_slo(fields) == slo


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "got none"),
        ({"ttft": 3}, "got ttft"),
        ({"ttft_ms": "fast"}, "must be a finite number, got 'fast'"),
        ({"ttft_ms": True}, "must be a finite number, got True"),
        ({"ttft_ms": 0}, "ttft_ms must be above 0"),
        ({"tpot_ms": 50}, "tpot_ms needs ttft_ms"),
        ({"pslo": 0.5}, "at least 1, got 0.5"),
        ({"slo_scale": math.nan}, "slo_scale must be a finite number, got nan"),
        ({"ttft_ms": math.inf}, "ttft_ms must be a finite number, got inf"),
        ({"ttft_ms": 10**400}, "ttft_ms must be a finite number, got something of type int"),
        ({"ttft_ms": 1e-322}, "ttft_ms must be above 0, got 0"),
        ({"ttft_ms": None}, "must be a finite number, got None"),
        ({"ttft_ms": {"value": 3}}, "must be a finite number, got something of type dict"),
        ({5: 1, None: 2}, "got 5, None"),
        ({("ttft_ms",): 1}, "got something of type tuple"),
        ({"on_miss": "reject", "ttft_ms": 5}, "got on_miss"),
        ([("ttft_ms", 5)], "a mapping such as .* got something of type list"),
        ("x" * 1000, "got 'x{40}…'$"),
        ({"pslo": 3, "ttft_ms": 100}, "not a mixture"),
        ({"due_s": 3, "ttft_ms": 100}, "not a mixture"),
        ({"due_s": 3, "pace_s": -0.1}, "SLO pace_s must be at least 0"),
    ],
)
def test_a_bad_slo_is_refused_with_what_was_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        parse_slo(fields)


KEYS = st.sampled_from(["ttft_ms", "tpot_ms", "e2el_ms", "pslo", "dslo", "slo_scale", "on_miss"])
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.builds(pow, st.just(10), st.just(5000))
)
VALUES = st.recursive(
    SCALARS | st.floats(1.0, 1e4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text() | SCALARS, inner, max_size=3),
    max_leaves=4,
)


@given(VALUES | st.dictionaries(KEYS, st.floats(1.0, 1e4) | SCALARS, max_size=3))
@settings(max_examples=60, deadline=None)
def test_whatever_a_client_sends_as_its_slo_is_an_slo_or_a_value_error(fields):
    try:
        slo = parse_slo(fields)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    assert message.isprintable()
    if message:
        return
    assert set(fields) <= set(SLO_KEYS)
    deadlines = slo.bind(0.0, llm_route(5), 8, TABLE)
    assert 0.0 < deadlines.at(1) <= deadlines.at(2) <= deadlines.at(5)


@pytest.mark.parametrize(
    "deadlines", [Deadlines(7.5, 0.25, 0.01, 9.0), Deadlines(4.0), Deadlines(first=6.0, last=6.0), NO_DEADLINES]
)
def test_deadlines_made_elsewhere_cross_as_remaining_seconds(deadlines):
    fields = DueSlo.of(deadlines, now=5.0).fields()
    there = parse_slo(fields).bind(1005.0, llm_route(9), 8, None) if fields else NO_DEADLINES
    for unit in range(1, 10):
        assert there.at(unit) == pytest.approx(deadlines.at(unit) + 1000.0)


def test_a_deeply_nested_slo_is_refused():
    nested: object = 1
    for _ in range(100_000):
        nested = [nested]
    for fields in (nested, {"ttft_ms": nested}):
        with pytest.raises(ValueError, match="something of type list"):
            parse_slo(fields)


def test_a_scale_without_a_table_is_refused():
    with pytest.raises(ValueError, match="needs a latency table"):
        ScaleSlo(3.0).bind(0.0, llm_route(3), 5, None)


def test_a_prompt_walks_from_prefill_through_its_decode_steps():
    request = Request("a", 0.0, Deadlines(1.0, 0.5), llm_route(3), 7)
    seen = []
    for now in (1.0, 2.0, 2.0):
        seen.append((request.module, request.context))
        done = request.advance(now)
    assert seen == [("prefill", 7), ("decode", 8), ("decode", 9)]
    assert done
    assert (request.units, request.units_on_time) == (3, 2)
    request.end(2.0)
    assert request.outcome is Outcome.LATE


def test_a_single_token_needs_no_decode_step():
    request = Request("a", 0.0, NO_DEADLINES, llm_route(1), 7)
    assert request.advance(1.0)
    request.end(1.0)
    assert request.outcome is Outcome.MET


def test_an_image_delivers_one_unit_at_the_end_of_its_route():
    request = Request("a", 0.0, Deadlines(9.0), pipeline_route(("text_encoder", "denoise", "vae"), 2))
    assert [request.module for _ in range(4) if not request.advance(1.0)] == ["denoise", "denoise", "vae"]
    assert (request.units, request.first_unit_at, request.max_units) == (1, 1.0, 1)


def test_a_preempted_prompt_prefills_again_what_it_has_and_ends_with_the_same_number_of_tokens():
    request = Request("a", 0.0, NO_DEADLINES, llm_route(4), 10)
    request.advance(1.0)
    request.advance(2.0)
    request.preempt()
    assert (request.module, request.pending, request.units) == ("prefill", 12, 2)
    request.preempt()
    assert request.pending == 12
    assert not request.advance(3.0)
    assert request.module == "decode"
    assert request.advance(4.0)
    assert request.units == 4


def test_a_prompt_preempted_before_its_last_token_ends_with_its_second_prefill():
    request = Request("a", 0.0, NO_DEADLINES, llm_route(2), 10)
    request.advance(1.0)
    request.preempt()
    assert request.advance(2.0)
    assert request.units == 2


def test_a_request_ends_once_and_does_not_move_after_it():
    request = Request("a", 0.0, NO_DEADLINES, llm_route(2), 10)
    request.end(1.0, Outcome.ABORTED, "client gone")
    with pytest.raises(ValueError, match="has ended already"):
        request.end(2.0)
    with pytest.raises(ValueError, match="cannot move"):
        request.advance(2.0)


def test_impossible_requests_are_refused_where_they_are_made():
    with pytest.raises(ValueError, match="visits must be at least 0"):
        Stage("denoise", -1)
    with pytest.raises(ValueError, match="no visit to any module"):
        Request("a", 0.0, NO_DEADLINES, (Stage("denoise", 0),))
    with pytest.raises(ValueError, match="size must be at least 1"):
        Request("a", 0.0, NO_DEADLINES, llm_route(2), 0)


def test_batch_latency_knows_its_largest_measured_batch():
    assert BatchLatency((1, 8), (1.0, 2.0)).largest == 8


def test_a_request_that_moves_ahead_of_its_units_reads_the_deadline_of_the_next_one_to_be_planned():
    request = Request("r", 0.0, Deadlines(1.0, 0.5), llm_route(4), 10)
    assert not request.move()
    assert (request.module, request.in_flight, request.units, request.context) == ("decode", 1, 0, 11)
    assert request.next_deadline == 1.5
    assert not request.move()
    assert (request.in_flight, request.next_deadline, request.left) == (2, 2.0, [0, 2])
    request.deliver(1.0)
    request.deliver(1.6)
    assert (request.units, request.units_on_time, request.in_flight, request.next_deadline) == (2, 1, 0, 2.0)
    assert not request.move()
    assert request.move()
    assert (request.in_flight, request.left) == (2, [0, 0])


def test_a_preemption_loses_the_units_in_flight_and_they_are_planned_again():
    request = Request("r", 0.0, Deadlines(1.0, 0.5), llm_route(4), 10)
    request.advance(0.5)
    request.move()
    request.move()
    request.preempt()
    assert (request.module, request.in_flight, request.units, request.left, request.pending) == (
        "prefill", 0, 1, [1, 2], 11,
    )  # fmt: skip
    assert request.next_deadline == 1.5
    steps = [request.advance(2.0) for _ in range(3)]
    assert (steps, request.units) == ([False, False, True], 4)


def test_a_lone_unit_that_is_lost_in_flight_is_planned_again():
    request = Request("r", 0.0, Deadlines(1.0), llm_route(1), 10)
    assert request.move()
    request.preempt()
    assert (request.left, request.in_flight) == ([1, 0], 0)
    assert request.advance(2.0)


def test_pieces_complete_the_input_that_no_prefix_cache_spares():
    request = Request("r", 0.0, NO_DEADLINES, llm_route(4), 10)
    request.cached = 6
    assert (request.pending, request.is_resident) == (4, False)
    assert not request.process(3)
    assert (request.pending, request.is_resident) == (1, True)
    assert request.process(1)
    request.preempt()
    assert (request.pending, request.is_resident) == (4, False)
