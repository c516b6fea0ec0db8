"""Whole traces of the policies on scenarios that were worked out by hand."""

from __future__ import annotations

import pytest

from neustream import LatencyTable, Limits, Outcome, Request, ScaleSlo, make_policy
from neustream.policies.neustream_loop import batch_cap
from neustream.route import llm_route, pipeline_route
from neustream.testing import drive, fake_loop


def prompt(table: LatencyTable, name: str, arrival: float, size: int, tokens: int, *, pslo: float = 3.0) -> Request:
    route = llm_route(tokens)
    return Request(name, arrival, ScaleSlo(pslo, 1.5).bind(arrival, route, size, table), route, size)


def image(table: LatencyTable, name: str, arrival: float, steps: int, scale: float, on_miss="reject") -> Request:
    route = pipeline_route(table.modules, steps)
    deadlines = ScaleSlo(scale).bind(arrival, route, 1, table)
    return Request(name, arrival, deadlines, route, on_miss=on_miss)


def run(policy, table: LatencyTable, requests: list[Request], limits: Limits | None = None):
    ended: list[Request] = []
    loop, clock = fake_loop(policy, table, ended.append, limits)
    trace = drive(loop, clock, requests)
    assert sorted(r.request_id for r in ended) == sorted(r.request_id for r in requests)
    return trace, {r.request_id: (str(r.outcome), r.units_on_time) for r in ended}


def test_fcfs_prefills_before_any_decode_whatever_it_costs_the_running(llm_table):
    requests = [prompt(llm_table, "a", 0.0, 10, 3), prompt(llm_table, "b", 0.05, 90, 2)]
    trace, _ = run(make_policy("fcfs", llm_table), llm_table, requests)
    assert trace == [
        (0.0, "prefill", ["a"]),
        (0.2, "prefill", ["b"]),
        (1.2, "decode", ["a", "b"]),
        (1.3, "decode", ["a"]),
    ]


def test_fcfs_fills_a_prefill_up_to_seats_work_and_memory(llm_table):
    requests = [prompt(llm_table, name, 0.0, 10, 1) for name in "abcd"]
    for limits in (
        Limits(max_resident=2),
        Limits(max_work=25),
        Limits(free_blocks=6, block_size=4),
        Limits(free_blocks=7, spare_blocks=1, block_size=4),
    ):
        fresh = [Request(r.request_id, 0.0, r.deadlines, r.route, r.size) for r in requests]
        trace, _ = run(make_policy("fcfs", llm_table), llm_table, fresh, limits)
        assert [ids for _, _, ids in trace] == [["a", "b"], ["c", "d"]], limits


def test_a_prompt_longer_than_a_steps_work_is_prefilled_alone(llm_table):
    trace, _ = run(make_policy("fcfs", llm_table), llm_table, [prompt(llm_table, "a", 0.0, 50, 1)], Limits(max_work=25))
    assert trace == [(0.0, "prefill", ["a"])]


def test_neustream_prefills_between_decode_steps_when_credit_allows(llm_table):
    requests = [prompt(llm_table, "a", 0.0, 10, 3), prompt(llm_table, "b", 0.05, 10, 3)]
    trace, ends = run(make_policy("neustream", llm_table), llm_table, requests)
    assert trace == [
        (0.0, "prefill", ["a"]),
        (0.2, "prefill", ["b"]),
        (0.4, "decode", ["a", "b"]),
        (0.5, "decode", ["a", "b"]),
    ]
    assert ends == {"a": ("met", 3), "b": ("met", 3)}


def test_neustream_decodes_first_when_a_prefill_would_make_a_running_request_late(llm_table):
    # With no credit, a's second token is due at 3.1·0.2 + 0.15 = 0.77. Prefilling b (0.5 s) and decoding would
    # end at 0.8; one decode step later a's third is due at 0.92 and the same detour ends at 0.9.
    requests = [prompt(llm_table, "a", 0.0, 10, 3, pslo=3.1), prompt(llm_table, "b", 0.05, 40, 3)]
    trace, ends = run(make_policy("neustream", llm_table, horizon=0), llm_table, requests)
    assert trace == [
        (0.0, "prefill", ["a"]),
        (0.2, "decode", ["a"]),
        (0.3, "prefill", ["b"]),
        (0.8, "decode", ["a", "b"]),
        (0.9, "decode", ["b"]),
    ]
    assert ends == {"a": ("met", 3), "b": ("met", 3)}


def test_neustream_rejects_what_cannot_make_its_first_token_even_alone(llm_table):
    requests = [prompt(llm_table, "long", 0.0, 100, 1), prompt(llm_table, "late", 0.1, 10, 1)]
    trace, ends = run(make_policy("neustream", llm_table, horizon=0), llm_table, requests)
    assert trace == [(0.0, "prefill", ["long"])]
    assert ends == {"long": ("met", 1), "late": ("rejected", 0)}


def test_neustream_takes_short_prompts_first_and_only_as_many_as_are_in_time(llm_table):
    # a runs; its second token is due at 0.55 + 0.15. With b alone (0.15 s) the decode step ends at 0.45, with
    # b and c (0.45 s) at 0.75.
    requests = [
        prompt(llm_table, "a", 0.0, 10, 2, pslo=2.75),
        prompt(llm_table, "c", 0.0001, 30, 1, pslo=9.0),
        prompt(llm_table, "b", 0.0002, 5, 1, pslo=9.0),
    ]
    trace, ends = run(make_policy("neustream", llm_table, horizon=0), llm_table, requests)
    assert trace == [
        (0.0, "prefill", ["a"]),
        (0.2, "prefill", ["b"]),
        (0.35, "decode", ["a"]),
        (0.45, "prefill", ["c"]),
    ]
    assert {name: outcome for name, (outcome, _) in ends.items()} == {"a": "met", "b": "met", "c": "met"}


def test_batch_cap_is_the_largest_batch_within_the_scaled_single_step(loop_table):
    assert [batch_cap(loop_table, "denoise", scale) for scale in (1.0, 1.5, 2.0, 2.2, 3.0)] == [1, 1, 2, 3, 4]


def test_neustream_keeps_its_batch_together_and_drains_the_pipeline_from_its_end(loop_table):
    requests = [image(loop_table, name, 0.0, 2, 10.0) for name in "abc"]
    trace, ends = run(make_policy("neustream", loop_table, slo_scale=2.0), loop_table, requests)
    assert trace == [
        (0.0, "denoise", ["a", "b"]),
        (1.5, "denoise", ["a", "b"]),
        (3.0, "vae", ["a"]),
        (3.5, "vae", ["b"]),
        (4.0, "denoise", ["c"]),
        (5.0, "denoise", ["c"]),
        (6.0, "vae", ["c"]),
    ]
    assert {outcome for outcome, _ in ends.values()} == {"met"}


def test_requests_with_other_step_counts_join_and_leave_at_every_step(loop_table):
    requests = [image(loop_table, "a", 0.0, 3, 10.0), image(loop_table, "b", 0.5, 1, 10.0)]
    trace, _ = run(make_policy("neustream", loop_table, slo_scale=3.0), loop_table, requests)
    assert trace == [
        (0.0, "denoise", ["a"]),
        (1.0, "denoise", ["a", "b"]),
        (2.5, "vae", ["b"]),
        (3.0, "denoise", ["a"]),
        (4.0, "vae", ["a"]),
    ]


def test_a_request_that_cannot_finish_in_time_is_rejected_or_demoted_as_its_user_chose(loop_table):
    # Alone each needs 2.5 s; the second is due at 2.75 and cannot start before 2.5.
    for on_miss, outcome in (("reject", "rejected"), ("demote", "late")):
        requests = [image(loop_table, "a", 0.0, 2, 1.1), image(loop_table, "b", 0.0, 2, 1.1, on_miss)]
        trace, ends = run(make_policy("neustream", loop_table, slo_scale=1.1), loop_table, requests)
        assert trace[:3] == [(0.0, "denoise", ["a"]), (1.0, "denoise", ["a"]), (2.0, "vae", ["a"])]
        assert ends == {"a": ("met", 1), "b": (outcome, 0)}
        assert len(trace) == (3 if on_miss == "reject" else 6)


def test_unknown_policies_and_options_are_refused_with_the_known_ones(llm_table, loop_table):
    with pytest.raises(ValueError, match=r"unknown policy 'magic'; there are .*neustream"):
        make_policy("magic", llm_table)
    with pytest.raises(ValueError, match=r"'chunked' does not serve dit-hand; .*neustream.* do"):
        make_policy("chunked", loop_table)
    with pytest.raises(ValueError, match=r"policy 'neustream' has no option 'colour'; it has horizon"):
        make_policy("neustream", llm_table, colour=1)
    with pytest.raises(ValueError, match=r"policy 'fcfs' has no option 'horizon'; it has none"):
        make_policy("fcfs", loop_table, horizon=1)
    with pytest.raises(ValueError, match="slo_scale must be at least 1"):
        make_policy("neustream", loop_table, slo_scale=0.5)


def test_every_ended_request_has_one_outcome(loop_table):
    requests = [image(loop_table, str(i), 0.3 * i, 1 + i % 3, 2.0) for i in range(20)]
    run(make_policy("neustream", loop_table, slo_scale=2.0), loop_table, requests)
    assert {r.outcome for r in requests} <= {Outcome.MET, Outcome.LATE, Outcome.REJECTED}
