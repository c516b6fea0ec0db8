"""The upper bound: never below what some schedule serves, never above what could be served at all, and of use."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neusim.bound import request_bound
from neusim.sim import Device, LlmWorkload, PipelineWorkload, simulate
from neustream import AbsoluteSlo, Deadlines, LatencyTable, Request, ScaleSlo, Shape, Stage
from neustream.latency import BatchLatency, ContextLatency, LatencyModel, TokensLatency
from neustream.route import llm_route, pipeline_route
from tests.neusim.brute_force import serve_images, serve_text

DIT = LatencyTable(
    "dit",
    "paper",
    {
        "denoise": BatchLatency((1, 2, 3, 4), (1.0, 1.5, 2.0, 2.5)),
        "vae": BatchLatency((1, 2), (0.5, 1.0)),
    },
)
OPT = LatencyTable("opt", "paper", {"prefill": TokensLatency((0.1, 0.01, 0.0)), "decode": ContextLatency((0.1, 0.001))})

tenths = st.integers(1, 30).map(lambda number: number / 10)


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
    [({"devices": "two"}, "interleaved or process, got 'two'"), ({"max_batch": 0}, "at least 1, got 0")],
)
def test_bad_arguments_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_bound(images((0.0, 1.0)), DIT, **options)  # type: ignore[arg-type]


@st.composite
def image_instances(draw: st.DrawFn, is_sane: bool = False) -> tuple[list[Request], LatencyTable]:
    """Two to four requests of one to three steps, on tables that need not make sense."""
    steps = draw(st.lists(tenths, min_size=1, max_size=4))
    vae = draw(st.lists(tenths, min_size=1, max_size=2))
    if is_sane:
        steps, vae = sorted(steps), sorted(vae)
    seconds = {"denoise": steps, "vae": vae}
    modules = {name: BatchLatency(tuple(range(1, len(s) + 1)), tuple(s)) for name, s in seconds.items()}
    table = LatencyTable("dit", "paper", modules)
    requests = []
    for i in range(draw(st.integers(2, 4))):
        route = draw(
            st.sampled_from([(Stage("denoise", 1),), (Stage("denoise", 2), Stage("vae")), (Stage("denoise", 3),)])
        )
        arrival = draw(st.integers(0, 30)) / 10
        alone = sum(stage.visits * modules[stage.module].seconds[0] for stage in route)
        window = alone * draw(st.sampled_from([0.8, 1.0, 1.2, 1.5, 2.0, 3.0]))
        requests.append(Request(str(i), arrival, Deadlines(arrival + window), route))
    return requests, table


@settings(max_examples=150, deadline=None)
@given(image_instances())
def test_no_schedule_of_images_beats_the_bound(instance: tuple[list[Request], LatencyTable]) -> None:
    requests, table = instance
    best = serve_images(requests, table)
    tight = request_bound(requests, table, devices="interleaved")
    assert best <= tight <= request_bound(requests, table) <= len(requests)


@settings(max_examples=50, deadline=None)
@given(image_instances())
def test_no_schedule_of_small_batches_beats_its_bound(instance: tuple[list[Request], LatencyTable]) -> None:
    requests, table = instance
    bound = request_bound(requests, table, devices="interleaved", max_batch=2)
    assert serve_images(requests, table, max_batch=2) <= bound


@settings(max_examples=100, deadline=None)
@given(image_instances(is_sane=True))
def test_the_bound_is_at_most_what_is_feasible_alone(instance: tuple[list[Request], LatencyTable]) -> None:
    requests, table = instance
    alone = sum(serve_images([request], table) for request in requests)
    assert request_bound(requests, table) <= alone


@st.composite
def text_instances(draw: st.DrawFn) -> tuple[list[Request], LatencyTable]:
    """Two or three requests of up to three prompt tokens and three output tokens."""
    a, b, c = draw(tenths), draw(tenths), draw(st.integers(-1, 3)) / 20
    grid = sorted(draw(st.sets(st.integers(1, 6), max_size=3)))
    prefill = TokensLatency((a, b, c), tuple(grid), tuple(draw(tenths) for _ in grid))
    base = draw(st.lists(tenths, min_size=1, max_size=3))
    decode = ContextLatency((base[0], draw(st.integers(0, 3)) / 20), tuple(range(1, len(base) + 1)), tuple(base))
    table = LatencyTable("opt", "paper", {"prefill": prefill, "decode": decode})
    requests = []
    for i in range(draw(st.integers(2, 3))):
        size = draw(st.integers(1, 2))
        route = llm_route(draw(st.integers(1, 3)))
        arrival = draw(st.integers(0, 20)) / 10
        slo = ScaleSlo(draw(st.sampled_from([1.0, 1.5, 3.0])), draw(st.sampled_from([1.0, 1.5, 2.0])))
        requests.append(Request(str(i), arrival, slo.bind(arrival, route, size, table), route, size))
    return requests, table


@settings(max_examples=80, deadline=None)
@given(text_instances())
def test_no_schedule_of_text_beats_the_bound(instance: tuple[list[Request], LatencyTable]) -> None:
    requests, table = instance
    assert serve_text(requests, table) <= request_bound(requests, table) <= len(requests)


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
    """All at once, with time for a third of the work at the best batch: the bound is that third."""
    requests = images(*[(0.0, 20.0)] * 30, steps=4)
    # At any batch b a step takes 0.5 + 0.5 b, a request 4 steps and 0.5 s of VAE.
    feasible = max(
        n for n in range(31) if min(math.ceil(n / b) * 4 * (0.5 + 0.5 * b) + 0.5 * n for b in range(1, 31)) <= 20
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
