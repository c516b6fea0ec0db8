"""Whole traces of clockwork, worked out by hand. n steps take 1·n + 0.5 s alone, 1.5·n + 1 s as a pair."""

from __future__ import annotations

import pytest

from neustream import Deadlines, LatencyTable, Limits, Request, make_policy
from neustream.latency import BatchLatency
from neustream.policies.base import PolicyContext
from neustream.policies.clockwork import Clockwork
from neustream.route import pipeline_route
from neustream.streams import Streams
from neustream.testing import drive, fake_loop


def image(name: str, arrival: float, steps: int, due: float) -> Request:
    return Request(name, arrival, Deadlines(due), pipeline_route(["denoise", "vae"], steps))


def run(table: LatencyTable, requests: list[Request], limits: Limits | None = None, **options):
    ended: list[Request] = []
    loop, clock = fake_loop(make_policy("clockwork", table, **options), table, ended.append, limits)
    trace = drive(loop, clock, requests)
    return trace, {request.request_id: str(request.outcome) for request in ended}


def test_a_batch_runs_to_its_end_whoever_else_arrives(loop_table):
    requests = [image("a", 0.0, 2, 9.0), image("b", 0.0, 2, 9.0), image("urgent", 0.5, 1, 6.0)]
    trace, ends = run(loop_table, requests)
    assert trace == [
        (0.0, "denoise", ["a", "b"]),
        (1.5, "denoise", ["a", "b"]),
        (3.0, "vae", ["a", "b"]),
        (4.0, "denoise", ["urgent"]),
        (5.0, "vae", ["urgent"]),
    ]
    assert ends == {"a": "met", "b": "met", "urgent": "met"}


def test_only_equal_step_counts_share_a_batch_and_the_earliest_latest_start_goes_first(loop_table):
    # Latest starts: a alone 20 - 2.5 = 17.5, as a pair with c 20 - 4 = 16; b alone 9 - 1.5 = 7.5.
    requests = [image("a", 0.0, 2, 20.0), image("b", 0.0, 1, 9.0), image("c", 0.0, 2, 21.0)]
    trace, _ = run(loop_table, requests)
    assert [(module, ids) for _, module, ids in trace] == [
        ("denoise", ["b"]),
        ("vae", ["b"]),
        ("denoise", ["a", "c"]),
        ("denoise", ["a", "c"]),
        ("vae", ["a", "c"]),
    ]


def test_a_batch_is_no_larger_than_its_heads_deadline_allows(loop_table):
    # As a pair they end at 2.5, too late for a; alone a ends at 1.5 and b at 3.
    trace, ends = run(loop_table, [image("a", 0.0, 1, 2.0), image("b", 0.0, 1, 3.0)])
    assert trace[0] == (0.0, "denoise", ["a"])
    assert ends == {"a": "met", "b": "met"}


def test_the_most_urgent_group_is_served_in_the_largest_batch_that_its_requests_fill(loop_table):
    """a could still end alone, at 2, but b and c fill a batch of two: more are served, and a has lost its turn."""
    requests = [image("first", 0.0, 1, 9.0)]
    requests += [image(name, 0.1, 1, due) for name, due in (("a", 3.1), ("b", 4.5), ("c", 4.5))]
    trace, ends = run(loop_table, requests)
    assert [ids for _, module, ids in trace if module == "denoise"] == [["first"], ["b", "c"]]
    assert ends == {"first": "met", "b": "met", "c": "met", "a": "rejected"}


def test_a_start_at_the_very_last_moment_is_in_time_and_a_later_one_is_rejected(loop_table):
    requests = [image("a", 0.0, 1, 9.0), image("just", 0.1, 2, 4.0), image("no", 0.1, 2, 3.9)]
    trace, ends = run(loop_table, requests)
    assert [ids for _, module, ids in trace if module == "vae"] == [["a"], ["just"]]
    assert ends == {"a": "met", "just": "met", "no": "rejected"}


def test_batches_have_at_most_nine():
    sizes = tuple(range(1, 13))
    model = BatchLatency(sizes, tuple(0.1 * size for size in sizes))
    table = LatencyTable("dit-hand", "paper", {"denoise": model, "vae": model})
    trace, _ = run(table, [image(f"r{i}", 0.0, 1, 99.0) for i in range(11)])
    assert [len(ids) for _, _, ids in trace] == [9, 9, 2, 2]


def test_batches_are_no_larger_than_those_that_were_measured(loop_table):
    trace, _ = run(loop_table, [image(f"r{i}", 0.0, 1, 99.0) for i in range(5)])
    assert max(len(ids) for _, _, ids in trace) == 2


def test_where_memory_has_split_a_batch_its_parts_take_turns_and_nobody_joins(loop_table):
    policy = Clockwork(loop_table)
    streams = Streams(loop_table.modules)
    a, b, new = image("a", 0.0, 2, 99.0), image("b", 0.0, 2, 99.0), image("new", 0.0, 2, 9.0)
    for request in (a, b, new):
        streams.add(request)
    a.advance(1.0)
    b.advance(1.0)
    halved = Limits(max_batch={"denoise": 1})
    assert policy.plan(1.0, streams, halved).batch == (a,)
    streams.remove(a)
    a.advance(2.0)
    streams.add(a)
    assert policy.plan(2.0, streams, halved).batch == (b,)


def test_a_process_of_one_module_takes_what_earlier_processes_ran_as_waiting(loop_table):
    """And its exec counts the hand-over to the process after it."""
    streams = Streams(["vae"])
    requests = [image(name, 0.0, 1, due) for name, due in (("a", 2.5), ("b", 2.0), ("late", 1.4))]
    for request in requests:
        request.advance(1.0)
        streams.add(request)
    plan = Clockwork(loop_table, PolicyContext(handover=0.035)).plan(1.0, streams, Limits())
    assert [request.request_id for request in plan.batch] == ["b", "a"]
    assert [rejection.request.request_id for rejection in plan.rejected] == ["late"]

    first = Streams(["denoise"])
    first.add(image("tight", 0.0, 1, 1.52))
    assert Clockwork(loop_table).plan(0.0, first, Limits()).batch
    assert Clockwork(loop_table, PolicyContext(handover=0.035)).plan(0.0, first, Limits()).rejected


def test_planning_changes_nothing(loop_table):
    policy = Clockwork(loop_table)
    streams = Streams(loop_table.modules)
    for i in range(5):
        streams.add(image(f"r{i}", 0.0, 1 + i % 2, 3.0 + i))
    assert policy.plan(0.0, streams, Limits()) == policy.plan(0.0, streams, Limits())
    assert [request.request_id for request in streams] == [f"r{i}" for i in range(5)]


def test_it_serves_pipelines_only(llm_table, loop_table):
    with pytest.raises(ValueError, match="clockwork"):
        make_policy("clockwork", llm_table)
    with pytest.raises(ValueError, match="max_batch"):
        make_policy("clockwork", loop_table, max_batch=0)
