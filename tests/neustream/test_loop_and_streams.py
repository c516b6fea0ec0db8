"""The step loop commits what ran; streams join and part in any order."""

from __future__ import annotations

import subprocess
import sys

import pytest

from neustream import Limits, Outcome, Request, StepPlan, StepResult, Streams, commit, make_policy
from neustream.route import llm_route, pipeline_route
from neustream.slo import NO_DEADLINES, Deadlines
from neustream.testing import fake_loop


def image(name: str, steps: int = 2, due: float = 100.0) -> Request:
    return Request(name, 0.0, Deadlines(due), pipeline_route(("denoise", "vae"), steps))


def test_whoever_is_left_out_has_one_pass_more_until_it_moves_on():
    streams = Streams(("denoise", "vae"))
    a, b = image("a", 1), image("b", 1)
    for request in (a, b):
        streams.add(request)
    commit(streams, StepPlan("denoise", (a,)), StepResult(), 1.0)
    assert (a.passes, b.passes, a.module) == (0, 1, "vae")
    commit(streams, StepPlan("vae", (a,)), StepResult(), 2.0)
    assert (b.passes, a.outcome, a.ended_at) == (1, Outcome.MET, 2.0)
    commit(streams, StepPlan("denoise", (b,)), StepResult(), 3.0)
    assert b.passes == 0
    streams.check_integrity()


def test_a_failed_request_ends_with_the_reason_and_the_others_go_on():
    streams = Streams(("denoise", "vae"))
    a, b = image("a"), image("b")
    for request in (a, b):
        streams.add(request)
    ended = commit(streams, StepPlan("denoise", (a, b)), StepResult(failed={"a": "NaN in its latent"}), 1.0)
    assert ended == [a]
    assert (a.outcome, a.reason) == (Outcome.FAILED, "NaN in its latent")
    assert list(streams) == [b]


def test_a_request_that_stops_early_ends_with_what_it_has():
    streams = Streams(("prefill", "decode"))
    request = Request("a", 0.0, NO_DEADLINES, llm_route(100), 5)
    streams.add(request)
    assert commit(streams, StepPlan("prefill", (request,)), StepResult(stopped=frozenset("a")), 1.0) == [request]
    assert (request.outcome, request.units, len(streams)) == (Outcome.MET, 1, 0)


class Evicting:
    """Takes the device from `victims` for a prefill of all others, the first time it is asked."""

    def __init__(self, victims: tuple[Request, ...]) -> None:
        self.victims = victims

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        waiting = tuple(request for request in streams["prefill"] if request not in self.victims)
        return StepPlan("prefill", waiting, preempted=self.victims)


def test_a_plan_takes_the_device_from_those_it_preempts_before_its_step_runs(llm_table):
    requests = [Request(name, 0.0, NO_DEADLINES, llm_route(9), 5) for name in "abcd"]
    a, b, c, d = requests
    for request in (a, b):
        request.advance(0.0)
    loop, _ = fake_loop(Evicting((b, a)), llm_table, lambda request: None)
    for request in requests:
        loop.streams.add(request)
    assert loop.step().batch == (c, d)
    assert (list(loop.streams["prefill"]), list(loop.streams["decode"])) == ([a, b], [c, d])
    assert [(r.pending, r.units, r.is_resident) for r in (a, c)] == [(6, 1, False), (1, 1, True)]
    loop.streams.check_integrity()


def test_an_aborted_request_leaves_at_the_step_boundary(loop_table):
    ended: list[Request] = []
    loop, clock = fake_loop(make_policy("neustream", loop_table), loop_table, ended.append)
    loop.streams.add(image("a", 5))
    loop.streams.add(image("b", 5))
    loop.step()
    assert loop.abort("a") is ended[0]
    assert loop.abort("a") is None
    assert [r.request_id for r in loop.step().batch] == ["b"]
    assert ended[0].outcome is Outcome.ABORTED
    assert clock.now == pytest.approx(1.5 + 1.0)


def test_the_loop_reports_each_step_with_its_times(loop_table):
    steps = []
    policy = make_policy("neustream", loop_table)
    loop, _ = fake_loop(policy, loop_table, lambda request: None, on_step=steps.append)
    loop.streams.add(image("a", 1))
    loop.step()
    loop.step()
    times = [(step.kind, step.request_ids, step.time, step.seconds, step.predicted_seconds) for step in steps]
    assert times == [("denoise", ("a",), 0.0, 1.0, 1.0), ("vae", ("a",), 1.0, 0.5, 0.5)]


def test_a_stream_refuses_a_second_request_of_the_same_id_and_an_unknown_module():
    streams = Streams(("denoise", "vae"))
    streams.add(image("a"))
    with pytest.raises(ValueError, match="'a' is in use"):
        streams.add(image("a"))
    with pytest.raises(ValueError, match="needs module 'prefill'; there are denoise, vae"):
        streams.add(Request("b", 0.0, NO_DEADLINES, llm_route(2), 5))


def test_splitting_keeps_order_and_leaves_the_streams_as_they_were():
    streams = Streams(("denoise", "vae"))
    a, b, c = image("a"), image("b"), image("c")
    for request in (a, b, c):
        streams.add(request)
    streams.demote(b)
    streams.demote(b)
    assert streams.num_demoted == 1
    live, demoted = streams.split()
    assert (list(live), list(demoted), list(streams)) == ([a, c], [b], [a, b, c])
    streams.remove(b)
    assert streams.num_demoted == 0
    streams.check_integrity()


def test_a_plan_has_a_module_if_and_only_if_it_has_a_batch():
    with pytest.raises(ValueError, match="if and only if"):
        StepPlan("denoise")
    with pytest.raises(ValueError, match="if and only if"):
        StepPlan(None, (image("a"),))


def test_blocks_round_up():
    assert [Limits(block_size=16).blocks(n) for n in (1, 16, 17)] == [1, 1, 2]


def test_the_core_imports_no_framework():
    code = (
        "import sys, neustream, neustream.testing, neustream.workload, neustream.records, neustream.capacity;"
        "print([m for m in ('torch', 'vllm', 'diffusers', 'ray', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
