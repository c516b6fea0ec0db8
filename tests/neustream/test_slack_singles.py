"""slack on pipelines: modules that are visited once wait until a batch pays, and what is kept back for others."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neustream import LatencyTable, Limits, Outcome, Request, Streams
from neustream.history import StepHistory
from neustream.latency import BatchLatency
from neustream.plan import StepPlan
from neustream.policies.base import PolicyContext
from neustream.policies.slack.fit import LEAST_RESERVE, RESERVE, FluidFit
from neustream.policies.slack.loop import SlackLoop
from neustream.policies.slack.outlook import Outlook
from neustream.route import pipeline_route
from neustream.slo import Deadlines
from neustream.testing import drive, fake_loop

PAIRS = LatencyTable(
    "pairs",
    "d",
    {
        "text_encoder": BatchLatency((1, 2), (0.5, 0.5)),
        "denoise": BatchLatency((1, 2), (1.0, 1.0)),
        "vae": BatchLatency((1, 2), (1.0, 1.0)),
    },
)
"""Pairs of anything take no longer than one."""


def standing(name: str, at: int, due: float, steps: int = 4, table: LatencyTable = PAIRS) -> Request:
    """An image of `steps` denoising steps that has made `at` visits."""
    request = Request(name, 0.0, Deadlines(due), pipeline_route(table.modules, steps))
    for _ in range(at):
        request.advance(0.0)
    return request


def planned(*requests: Request, limits: Limits | None = None, modules: tuple[str, ...] = ()) -> StepPlan:
    streams = Streams(modules or PAIRS.modules)
    for request in requests:
        streams.add(request)
    return SlackLoop(PAIRS).plan(0.0, streams, limits or Limits())


@pytest.mark.parametrize(("due", "module"), [(2.05, "denoise"), (1.95, "vae")])
def test_one_behind_the_loop_waits_for_another_while_it_can_stand_a_step_of_the_loop(due, module):
    """Its VAE takes 1 s, as does a step of the loop; another is one step from the VAE."""
    plan = planned(standing("done", 5, due), standing("nearly", 4, 20.0))
    assert plan.module == module


def test_a_batch_that_pays_does_not_wait():
    plan = planned(standing("a", 5, 20.0), standing("b", 5, 20.0), standing("c", 2, 20.0))
    assert (plan.module, [request.request_id for request in plan.batch]) == ("vae", ["a", "b"])


def test_nobody_waits_where_the_loop_has_nobody():
    assert planned(standing("a", 5, 20.0)).module == "vae"
    assert planned(standing("a", 5, 20.0), modules=("vae",)).module == "vae"


def test_a_slow_device_is_waited_on_less():
    """A step of the loop takes 1.2 s, or the VAE does: each by its own ratio."""
    for module, due in (("denoise", 2.15), ("vae", 2.15)):
        limits = Limits(drift={module: 1.2})
        assert planned(standing("a", 5, due), standing("b", 4, 20.0), limits=limits).module == "vae"
        assert planned(standing("a", 5, due + 0.1), standing("b", 4, 20.0), limits=limits).module == "denoise"


def test_those_in_the_loop_are_planned_with_what_waits_behind_it():
    """b's last step and its VAE take 2 s, and a's VAE another: of 3.2 s it has none for c to share its step."""
    table = LatencyTable(
        "t", "d", {"denoise": BatchLatency((1, 2), (1.0, 1.9)), "vae": BatchLatency((1, 2), (1.0, 1.0))}
    )
    batches = []
    for due in (3.2, 9.0):
        streams = Streams(table.modules)
        a, b, c = (standing("a", 4, 20.0, 4, table), standing("b", 3, due, 4, table), standing("c", 1, 20.0, 4, table))
        for request in (a, b, c):
            streams.add(request)
        plan = SlackLoop(table).plan(0.0, streams, Limits())
        batches.append((plan.module, [request.request_id for request in plan.batch]))
    assert batches == [("denoise", ["b"]), ("denoise", ["b", "c"])]


def test_the_text_encoder_waits_while_those_in_the_loop_fill_its_next_batch():
    """Three take turns in batches of two; whoever has not begun is not in the next while two others have less slack."""
    in_loop = [standing(name, 1, 12.0) for name in "ab"]
    assert planned(*in_loop, standing("c", 0, 30.0)).module == "denoise"
    assert planned(*in_loop, standing("c", 0, 8.0)).module == "text_encoder"
    assert planned(in_loop[0], standing("c", 0, 30.0)).module == "text_encoder"


def test_held_requests_are_in_time_in_a_whole_trace():
    """Pairs go through the loop one after the other; those that finish at different times share the VAE."""
    loop, clock = fake_loop(SlackLoop(PAIRS), PAIRS, lambda request: None)
    requests = [
        Request(name, 0.0, Deadlines(9.0), pipeline_route(PAIRS.modules, n)) for name, n in (("a", 2), ("b", 4))
    ]
    steps = drive(loop, clock, requests)
    assert [module for _, module, _ in steps] == ["text_encoder", *["denoise"] * 4, "vae"]
    assert all(request.outcome is Outcome.MET for request in requests)


@given(st.integers(2, 40), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_reserve_follows_what_a_full_batch_spares(size, slope):
    """A step of b takes 1 + slope·(b − 1): at a slope of 1 a batch spares nothing, at 0 nearly all."""
    fit = FluidFit([0.0, *(1.0 + slope * b for b in range(size))], size)
    spared = 1.0 - (1.0 + slope * (size - 1)) / size
    assert fit.reserve == pytest.approx(max(RESERVE * spared, LEAST_RESERVE))


def reserve_of(context: PolicyContext, modules: tuple[str, ...], limits: Limits) -> float:
    """The share of its slack that is not planned with, of a request in the loop of a device with flat steps."""
    sizes = tuple(range(1, 11))
    table = LatencyTable(
        "t", "d", {"denoise": BatchLatency(sizes, (1.0,) * 10), "vae": BatchLatency((1, 2), (1.0, 1.1))}
    )
    policy = SlackLoop(table, context)
    outlook = policy._outlook
    assert isinstance(outlook, Outlook)
    streams = Streams(modules)
    streams.add(standing("a", 0, 1e6, 4, table))
    needs = outlook.survey(0.0, streams, limits).loops["denoise"].needs
    return 1.0 - float(needs.margins[0]) * limits.drift.get("denoise", 1.0) / 1e6


def test_little_is_kept_back_where_those_behind_the_loop_do_not_disturb_it():
    """One process: all. Two that the table says do not slow each other down: the least, until steps say otherwise."""
    both, loop = ("denoise", "vae"), ("denoise",)
    split = PolicyContext(handover=0.01, processes=(("denoise",), ("vae",)))
    assert reserve_of(PolicyContext(), both, Limits()) == pytest.approx(0.09, abs=1e-4)
    assert reserve_of(split, loop, Limits()) == pytest.approx(LEAST_RESERVE, abs=1e-4)
    assert reserve_of(split, loop, Limits(beside={"denoise": 2.0})) == pytest.approx(0.09, abs=1e-4)
    slow = Limits(drift={"denoise": 2.0}, beside={"denoise": 2.0})
    assert reserve_of(split, loop, slow) == pytest.approx(LEAST_RESERVE, abs=1e-4)


def test_steps_that_had_company_are_counted_apart(loop_table):
    history = StepHistory(loop_table)
    request = standing("a", 0, 10.0, 4, loop_table)
    for seconds, learns in ((1.0, True), (2.0, False)) * 300:
        history.planned(StepPlan("denoise", (request,)))
        history.ended("denoise", seconds, learns=learns)
    limits = history.limits(Limits())
    assert limits.drift["denoise"] == 1.0
    assert limits.beside["denoise"] == pytest.approx(2.0, abs=0.05)


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_whoever_waits_behind_the_loop_could_have_run_afterwards(seed):
    """If the loop goes first, each that waits behind it can still make it by the table after that step."""
    rng = random.Random(seed)
    requests = [standing(f"r{i}", rng.randint(0, 5), rng.uniform(1.0, 12.0)) for i in range(rng.randint(1, 8))]
    plan = planned(*requests)
    if plan.module not in ("denoise", "text_encoder") or not plan.batch:
        return
    given_up = {rejection.request.request_id for rejection in plan.rejected}
    waiting = [request for request in requests if request.module == "vae" and request.request_id not in given_up]
    assert all(request.next_deadline >= 1.0 + 1.0 - 1e-9 for request in waiting)
