"""Goodput counts every injected request; workloads have the mean they promise; capacity follows its formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neustream import LatencyTable, Outcome, Request, Stage, StepLoop, Streams, make_policy
from neustream.goodput import SAMPLES, GoodputCounter, Reservoir
from neustream.latency import BatchLatency
from neustream.records import JsonLines, RequestRecord
from neustream.route import llm_route, pipeline_route
from neustream.slo import NO_DEADLINES, Deadlines
from neustream.testing import FakeExecutor, VirtualClock
from neustream.workload import gamma_arrivals, prompt_lengths, step_counts


def finished(name: str, times: list[float], deadlines: Deadlines, arrival: float = 0.0) -> Request:
    request = Request(name, arrival, deadlines, llm_route(len(times)), 5)
    for now in times:
        request.advance(now)
    request.end(times[-1])
    return request


def test_goodput_counts_tokens_on_time_and_requests_all_of_whose_tokens_were():
    counter = GoodputCounter()
    counter.on_end(finished("met", [1.0, 2.0, 3.0], Deadlines(1.0, 1.0)))
    counter.on_end(finished("late", [1.0, 2.5, 3.0], Deadlines(1.0, 1.0), arrival=0.5))
    rejected = Request("no", 1.0, Deadlines(1.0), llm_route(2), 5)
    rejected.end(5.0, Outcome.REJECTED, "too late")
    counter.on_end(rejected)
    summary = counter.summary()
    assert (summary["requests"], summary["good"], summary["late"], summary["rejected"]) == (3, 1, 1, 1)
    assert summary["seconds"] == 5.0
    assert summary["request_goodput"] == pytest.approx(1 / 5)
    assert summary["token_goodput"] == pytest.approx(5 / 5)
    assert summary["slo_attainment"] == pytest.approx(1 / 3)
    assert summary["reject_rate"] == pytest.approx(1 / 3)
    assert summary["tpot"]["p50"] == pytest.approx(1.0)
    assert summary["ttft"] == {"p50": 0.5, "p90": 1.0, "p99": 1.0}


def test_classes_are_told_apart_where_there_are_any():
    counter = GoodputCounter()
    for name, slo_class, times in (("a", "chat", [1.0]), ("b", "chat", [3.0]), ("c", "batch", [2.0])):
        request = finished(name, times, Deadlines(2.0, 1.0))
        request.slo_class = slo_class
        counter.on_end(request)
    rejected = Request("no", 1.0, Deadlines(1.0), llm_route(2), 5, slo_class="batch")
    rejected.end(5.0, Outcome.REJECTED, "too late")
    counter.on_end(rejected)
    batch, chat = counter.summary()["classes"]["batch"], counter.summary()["classes"]["chat"]
    assert (batch["requests"], batch["good"], batch["slo_attainment"], batch["reject_rate"]) == (2, 1, 0.5, 0.5)
    assert (chat["requests"], chat["good"], chat["reject_rate"]) == (2, 1, 0.0)
    assert (chat["lateness"]["p50"], chat["lateness"]["p99"]) == (-1.0, 1.0)
    counter = GoodputCounter()
    counter.on_end(finished("a", [1.0], Deadlines(2.0)))
    assert "classes" not in counter.summary()


def test_the_counter_is_an_observer_of_a_loop():
    counter = GoodputCounter()
    table = LatencyTable("m", "d", {"denoise": BatchLatency((1, 4), (0.1, 0.2))})
    clock = VirtualClock()
    executor, policy = FakeExecutor(table, clock), make_policy("neustream", table)
    loop = StepLoop(policy, Streams(table.modules), executor, clock, counter)
    for name in ("a", "b"):
        loop.streams.add(Request(name, 0.0, Deadlines(10.0), (Stage("denoise", 2),)))
    while len(loop.streams):
        loop.step()
    assert counter.summary()["good"] == 2


def test_nothing_ended_gives_zeros_and_no_percentiles():
    summary = GoodputCounter().summary()
    assert (summary["requests"], summary["request_goodput"], summary["ttft"]["p50"]) == (0, 0.0, None)


def test_a_live_request_cannot_be_counted():
    with pytest.raises(ValueError, match="has not ended"):
        GoodputCounter().on_end(Request("a", 0.0, NO_DEADLINES, llm_route(2), 5))


def test_percentiles_are_exact_while_they_fit_and_close_beyond():
    few = Reservoir()
    for value in range(100, 0, -1):
        few.add(float(value))
    assert few.percentiles() == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    many = Reservoir()
    for value in range(3 * SAMPLES):
        many.add(float(value))
    assert len(many.values) == SAMPLES
    assert many.percentiles()["p50"] == pytest.approx(1.5 * SAMPLES, rel=0.03)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_arrivals_have_the_rate_and_variation_asked_for(cv):
    arrivals = gamma_arrivals(4.0, cv, 40_000, seed=1)
    gaps = np.diff(arrivals, prepend=0.0)
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)
    assert (arrivals == gamma_arrivals(4.0, cv, 40_000, seed=1)).all()


@pytest.mark.parametrize(("rate", "cv"), [(0, 1), (-1, 1), (1, 0), (float("nan"), 1), (1, float("inf"))])
def test_a_rate_or_variation_that_is_not_above_zero_is_refused(rate, cv):
    with pytest.raises(ValueError, match="must be above 0"):
        gamma_arrivals(rate, cv, 10, 0)


def test_prompt_lengths_and_step_counts_keep_to_their_ranges():
    lengths = prompt_lengths(20_000, 0)
    assert (lengths.min(), lengths.max()) == (10, 400)
    assert lengths.mean() == pytest.approx(100, rel=0.06)
    steps = step_counts(200, 250, 5000, 0)
    assert (steps.min(), steps.max()) == (200, 249)
    with pytest.raises(ValueError, match="lo:hi"):
        step_counts(5, 5, 10, 0)


def test_records_are_json_lines_with_times_since_the_origin(tmp_path: Path):
    with JsonLines(tmp_path / "runs" / "requests.jsonl") as lines:
        ended = finished("a", [11.0, 12.0], Deadlines(11.5, 1.0), 10.0)
        lines.write(RequestRecord.of(ended, origin=10.0).to_json())
        free = Request("b", 10.0, NO_DEADLINES, pipeline_route(("denoise",), 3))
        free.end(11.0, Outcome.ABORTED, "client gone")
        lines.write(RequestRecord.of(free, origin=10.0).to_json())
    first, second = [json.loads(line) for line in (tmp_path / "runs" / "requests.jsonl").read_text().splitlines()]
    assert (first["arrival"], first["first_unit"], first["last_deadline"], first["outcome"]) == (0.0, 1.0, 2.5, "met")
    assert (second["outcome"], second["reason"], second["first_deadline"]) == ("aborted", "client gone", None)


@pytest.mark.parametrize("cv", [1e-200, 1e200, 1e-7, 1e7])
def test_a_spread_that_no_gamma_distribution_has_is_refused(cv: float):
    with pytest.raises(ValueError, match="cv must be between 1e-06 and 1e"):
        gamma_arrivals(1.0, cv, 10, 0)


def test_vllms_attainment_looks_at_the_first_token_and_the_mean_gap():
    slo = Deadlines(1.0, 1.0)  # arrival 0: token k by 1 + (k − 1)
    counter = GoodputCounter()
    counter.on_end(finished("pause", [0.9, 2.9, 3.0, 3.1], slo))  # token 2 is late, the mean gap is 0.73
    counter.on_end(finished("lead", [0.1, 1.3, 2.5], slo))  # all in time, the mean gap is 1.2
    counter.on_end(finished("both", [1.0, 2.0, 3.0], slo))
    counter.on_end(finished("end", [0.5, 1.0, 1.5], Deadlines(1.0, 1.0, 0.0, 1.2)))  # its end is due at 1.2
    rejected = Request("no", 0.0, slo, llm_route(2), 5)
    rejected.end(5.0, Outcome.REJECTED, "too late")
    counter.on_end(rejected)
    summary = counter.summary()
    assert summary["good"] == 2
    assert summary["mean_attainment"] == pytest.approx(2 / 5)


def test_requests_by_tenths_of_their_input():
    counter = GoodputCounter()
    for size in range(1, 41):
        request = Request(str(size), 0.0, Deadlines(1.0), llm_route(1), size)
        request.advance(0.5 if size <= 20 else 1.5)
        request.end(2.0)
        counter.on_end(request)
    parts = counter.summary()["by_size"]
    assert [(part["least"], part["most"]) for part in parts[:2]] == [(1, 4), (5, 8)]
    assert [part["good"] for part in parts] == [4] * 5 + [0] * 5
    counter = GoodputCounter()
    counter.on_end(finished("one", [1.0], Deadlines(1.0)))
    assert "by_size" not in counter.summary()
