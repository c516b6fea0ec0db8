"""The upper bound, worked out by hand; test_bound_properties.py compares it with schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest

from neusim.bound import request_bound
from neusim.sim import Device, LlmWorkload, PipelineWorkload, simulate
from neustream import AbsoluteSlo, Deadlines, LatencyTable, Request, ScaleSlo, Shape, Stage
from neustream.latency import BatchLatency, ContextLatency, LatencyModel, TokensLatency
from neustream.route import llm_route, pipeline_route
from tests.neusim.brute_force import serve_text

DIT = LatencyTable(
    "dit",
    "paper",
    {
        "denoise": BatchLatency((1, 2, 3, 4), (1.0, 1.5, 2.0, 2.5)),
        "vae": BatchLatency((1, 2), (0.5, 1.0)),
    },
)
OPT = LatencyTable("opt", "paper", {"prefill": TokensLatency((0.1, 0.01, 0.0)), "decode": ContextLatency((0.1, 0.001))})


def images(*windows: tuple[float, float], steps: int = 2) -> list[Request]:
    """Requests of `steps` denoising steps and a VAE, by (arrival, deadline)."""
    route = pipeline_route(("denoise", "vae"), steps)
    return [Request(str(i), start, Deadlines(end), route) for i, (start, end) in enumerate(windows)]


def test_requests_that_fit_one_after_the_other_or_together_all_count() -> None:
    assert request_bound(images((0.0, 2.5)), DIT) == 1  # 2 × 1 + 0.5
    assert request_bound(images((0.0, 4.0), (0.0, 4.0)), DIT, devices="interleaved") == 2  # 2 × 1.5 + 2 × 0.5
    assert request_bound(images((0.0, 3.9), (0.0, 3.9)), DIT, devices="interleaved") == 1
    assert request_bound([], DIT) == 0


def test_a_request_that_is_too_late_alone_never_counts() -> None:
    assert request_bound(images((0.0, 2.49)), DIT) == 0


def test_a_deadline_too_tight_for_a_shared_batch_is_charged_for_its_own() -> None:
    """Ten at once, each with no slack: sharing a batch makes any of them late, whatever the batch saves."""
    windows = [(0.0, 2.5)] * 10
    assert request_bound(images(*windows), DIT) == 1
    relaxed = [(0.0, 25.0)] * 10
    assert request_bound(images(*relaxed), DIT) == 10


def test_where_modules_take_turns_the_work_of_all_counts() -> None:
    """Four images, 2.5 s of denoising together and 0.5 s of VAE each, within 3 s."""
    requests = images(*[(0.0, 3.0)] * 4, steps=1)
    assert request_bound(requests, DIT, devices="process") == 4
    assert request_bound(requests, DIT, devices="interleaved") == 2


def test_a_limit_on_the_batch_lowers_the_bound() -> None:
    requests = images(*[(0.0, 8.0)] * 6)
    assert request_bound(requests, DIT, devices="interleaved", max_batch=1) == 3  # 2.5 each
    assert request_bound(requests, DIT) > 3


def test_batches_that_no_policy_may_plan_are_not_priced() -> None:
    """Twelve visits of 1 s each within 5 s. A batch of 12 would do, by the slope of the last two; 2 is the most."""
    table = LatencyTable("dit", "test", {"denoise": BatchLatency((1, 2), (1.0, 1.0))})
    requests = [Request(str(i), 0.0, Deadlines(5.0), (Stage("denoise", 1),)) for i in range(12)]
    assert request_bound(requests, table) == 10


def test_a_hand_over_takes_of_a_requests_time() -> None:
    """2 × 1 s, a hand-over of 0.3 s, 0.5 s."""
    split = {"groups": (("denoise",), ("vae",)), "handover": 0.3}
    assert request_bound(images((0.0, 2.8)), DIT, **split) == 1  # type: ignore[arg-type]
    assert request_bound(images((0.0, 2.79)), DIT, **split) == 0  # type: ignore[arg-type]
    assert request_bound(images((0.0, 2.5)), DIT, groups=(("denoise", "vae"),), handover=0.3) == 1


def test_where_processes_compete_for_the_gpu_the_work_of_all_counts() -> None:
    """Four images, 2.5 s of denoising together and 0.5 s of VAE each, within 3 s.

    By the table a denoising step keeps the GPU busy for 0.5 s a member, and the VAE all of its time.
    """
    requests = images(*[(0.0, 3.0)] * 4, steps=1)
    good = {law: request_bound(requests, DIT, contention=law) for law in ("none", "table", "full")}  # type: ignore[arg-type]
    assert good == {"none": 4, "table": 3, "full": 2}


def test_the_hosts_time_counts_in_every_step() -> None:
    assert request_bound(images((0.0, 2.8)), DIT, overhead=0.1) == 1
    assert request_bound(images((0.0, 2.79)), DIT, overhead=0.1) == 0
    text = [Request("a", 0.0, Deadlines(last=0.7), llm_route(3), 10)]  # 0.2 s of prefill, 2 × 0.11 s of decode
    assert request_bound(text, OPT, overhead=0.08) == 1
    assert request_bound(text, OPT, overhead=0.1) == 0


FLAT = LatencyTable("opt", "test", {"prefill": TokensLatency((0.5, 0.5, 0.0)), "decode": ContextLatency((1.0, 0.0))})
"""A decode step takes 1 s, whoever is in it."""


def flat_texts(count: int, seconds: float) -> list[Request]:
    """Prompts of 4 tokens, and 11 tokens of output."""
    return [Request(str(i), 0.0, Deadlines(last=seconds), llm_route(11), 4) for i in range(count)]


def test_memory_bounds_how_many_texts_decode_at_once() -> None:
    """Eight prefills take 16.5 s together, all decodes 10 s. With blocks of 4 tokens a text holds 2, 3, at last 4.

    Its ten decode steps take 4 × 2 + 4 × 3 + 2 × 4 = 28 block-seconds. Of 4 blocks there are 120 in the 30 s; in fact
    they are enough for one text at a time, which takes 12.5 s.
    """
    requests = flat_texts(8, 30.0)
    assert request_bound(requests, FLAT) == 8
    served = {blocks: request_bound(requests, FLAT, kv_blocks=blocks, block_size=4) for blocks in (3, 4, 6, 8, 32)}
    assert served[3] == 0
    assert 2 <= served[4] <= 120 / 28
    assert 2 <= served[6] <= 180 / 28
    assert 4 <= served[8] <= 8
    assert served[32] == 8


def test_a_text_that_comes_too_late_may_make_the_batch_of_another_cheap() -> None:
    """A decode alone takes 3 s, two take 0.1 s. The first text is late whatever happens, and long done with."""
    decode = ContextLatency((3.0, 0.0), (1, 2), (3.0, 0.1))
    table = LatencyTable("opt", "test", {"prefill": TokensLatency((1.0, 0.0, 0.0)), "decode": decode})
    late = Request("late", 0.0, Deadlines(last=0.1), llm_route(3), 1)
    requests = [late, Request("good", 1.0, Deadlines(last=2.25), llm_route(3), 1)]
    assert serve_text(requests, table) == 1
    assert request_bound(requests, table) == 1


def test_a_decode_that_context_makes_shorter_is_refused() -> None:
    modules: dict[str, LatencyModel] = {"prefill": OPT["prefill"], "decode": ContextLatency((0.1, -1e-6))}
    with pytest.raises(ValueError, match="context makes no shorter, got -1e-06 s a token"):
        request_bound(flat_texts(1, 9.0), LatencyTable("opt", "test", modules))


@pytest.mark.parametrize(("ttft", "served"), [(0.41, 3), (0.39, 2), (0.31, 2), (0.19, 0)])
def test_tokens_that_are_due_early_count_as_early_demand(ttft: float, served: int) -> None:
    """Three prompts of ten tokens at once: a prefill of k takes 0.1 s + k × 0.1 s, and the last token is not urgent."""
    route = llm_route(2)
    deadlines = AbsoluteSlo(ttft=ttft, tpot=10.0).bind(0.0, route, 10, OPT)
    requests = [Request(str(i), 0.0, deadlines, route, 10) for i in range(3)]
    assert request_bound(requests, OPT) == served


def test_a_workload_is_the_sum_of_its_parts_when_it_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [(10.0 * i, 10.0 * i + 2.5) for i in range(8)]
    whole = request_bound(images(*windows), DIT)
    monkeypatch.setattr("neusim.bound.program.MAX_REQUESTS", 3)
    assert request_bound(images(*windows), DIT) == whole == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": "two"}, "interleaved or process, got 'two'"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"kv_blocks": 0}, "kv_blocks must be at least 1, got 0"),
        ({"handover": -1.0}, "handover must be at least 0 and finite, got -1"),
        ({"contention": "some"}, "table, full or none, got 'some'"),
        ({"devices": "interleaved", "groups": (("denoise",), ("vae",))}, "several groups of modules need devices"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_bound(images((0.0, 1.0)), DIT, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.2, 2.0])
@pytest.mark.parametrize("rate", [0.2, 0.8])
def test_the_simulator_never_beats_the_bound_on_images(rate: float, scale: float) -> None:
    workload = PipelineWorkload(rate, 1.0, ScaleSlo(scale), (3, 8), num_requests=60)
    bound = request_bound(list(workload.requests(DIT)), DIT, devices="interleaved")
    for policy in ("neustream", "clockwork"):
        assert simulate(DIT, policy, workload, slo_scale=scale).good <= bound
        loose = request_bound(list(workload.requests(DIT)), DIT)
        assert simulate(DIT, policy, workload, Device("process"), slo_scale=scale).good <= loose
        assert bound <= loose


@pytest.mark.parametrize("rate", [0.1, 1.0, 5.0])
def test_the_simulator_never_beats_the_bound_on_text(rate: float) -> None:
    workload = LlmWorkload(rate, 1.0, ScaleSlo(3.0, 1.5), max_tokens=20, num_requests=60)
    bound = request_bound(list(workload.requests(OPT)), OPT, max_batch=256)
    for policy in ("fcfs", "neustream"):
        assert simulate(OPT, policy, workload).good <= bound


def test_overload_lowers_the_bound_to_what_the_device_can_do() -> None:
    """All at once, with time for a part of the work at the best batch: the bound is that part."""
    requests = images(*[(0.0, 20.0)] * 30, steps=4)
    # At a batch b of up to 4 a step takes 0.5 + 0.5 b, a request 4 steps and 0.5 s of VAE.
    feasible = max(
        n for n in range(31) if min(math.ceil(n / b) * 4 * (0.5 + 0.5 * b) + 0.5 * n for b in range(1, 5)) <= 20
    )
    bound = request_bound(requests, DIT, devices="interleaved")
    assert feasible <= bound <= 1.35 * feasible


def test_requests_without_deadlines_are_never_bounded() -> None:
    route = pipeline_route(("denoise", "vae"), 3)
    requests = [Request(str(i), 0.0, Deadlines(), route) for i in range(5)]
    assert request_bound(requests, DIT) == 5
    text = [Request(str(i), 0.0, Deadlines(), llm_route(3), 4) for i in range(5)]
    assert request_bound(text, OPT) == 5


def test_a_decode_step_is_split_among_those_who_share_it() -> None:
    """Long outputs on a device whose decode step costs the same for any batch: no work limit, only the first tokens."""
    modules: dict[str, LatencyModel] = {
        "prefill": TokensLatency((0.0, 0.01, 0.0)),
        "decode": ContextLatency((1.0, 0.0)),
    }
    flat = LatencyTable("opt", "paper", modules)
    route = llm_route(11)
    slo = AbsoluteSlo(ttft=1.0, tpot=1.2)
    requests = [Request(str(i), 0.0, slo.bind(0.0, route, 1, flat), route, 1) for i in range(50)]
    assert request_bound(requests, flat) == 50
    assert request_bound(requests, flat, max_batch=1) < 50
    assert flat["decode"].predict(Shape(50)) == 1.0
    assert np.isfinite(slo.bind(0.0, route, 1, flat).at(11))


def test_a_single_prompt_token_that_rides_along_may_be_the_cheapest_step() -> None:
    """A decode alone takes 0.9 s, two take 3 s; a step of w tokens takes w / 2 s, so one token rides for 0.1 s."""
    prefill, decode = TokensLatency((0.0, 0.5, 0.0)), ContextLatency((0.9, 0.0), (1, 2), (0.9, 3.0))
    table = LatencyTable("opt", "paper", {"prefill": prefill, "decode": decode})
    slo = AbsoluteSlo(e2el=2.5)
    requests = []
    for name, tokens, size in (("a", 3, 1), ("b", 1, 2)):
        route = llm_route(tokens)
        requests.append(Request(name, 0.0, slo.bind(0.0, route, size, table), route, size))
    assert serve_text(requests, table) == 2
    assert request_bound(requests, table) == 2
