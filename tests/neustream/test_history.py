"""Measured over predicted seconds, as a planner should reckon with it."""

from __future__ import annotations

import random

import pytest

from neustream import Request, StepPlan
from neustream.history import RANGE, DriftMeter, RunningRatio
from neustream.route import pipeline_route
from neustream.slo import NO_DEADLINES


def step(meter: DriftMeter, seconds: float, module: str = "denoise") -> None:
    """A step of one request, which the table says takes 1 s."""
    request = Request("r", 0.0, NO_DEADLINES, pipeline_route(meter.table.modules, 3))
    meter.expect(StepPlan("denoise", (request,)))
    meter.observe(module, seconds)


def test_it_stays_at_one_while_the_table_is_right_to_the_clocks_last_digits(loop_table):
    meter = DriftMeter(loop_table)
    for _ in range(10):
        step(meter, 1.0 + 1e-9)
    assert meter.ratios == {"denoise": 1.0}


@pytest.mark.parametrize("seconds", [1.2, 0.8])
def test_it_settles_on_what_steps_really_take(loop_table, seconds):
    meter = DriftMeter(loop_table)
    for _ in range(600):
        step(meter, seconds)
    assert meter.ratios["denoise"] == pytest.approx(seconds, abs=0.002)


def test_unreliable_steps_are_reckoned_with_by_how_far_they_stray(loop_table):
    """Steps of 0.8 or 1.2 s, 1 s on average, stray by 0.2 s."""
    meter, dice = DriftMeter(loop_table), random.Random(0)
    seen = []
    for i in range(2000):
        step(meter, dice.choice((0.8, 1.2)))
        seen.append(meter.ratios["denoise"])
        assert 0.8 < seen[-1] < 1.4, i
    assert sum(seen[500:]) / 1500 == pytest.approx(1.2, abs=0.02)


def test_a_single_pause_counts_for_no_more_than_the_range(loop_table):
    meter = DriftMeter(loop_table)
    step(meter, 50.0)
    one = RunningRatio()
    one.add(RANGE[1])
    assert meter.ratios["denoise"] == one.cautious < 1.1


def test_it_never_leaves_its_range(loop_table):
    meter = DriftMeter(loop_table)
    for _ in range(1000):
        step(meter, 50.0)
    assert meter.ratios["denoise"] == pytest.approx(RANGE[1], abs=1e-3)


def test_a_step_that_was_not_expected_teaches_nothing(loop_table):
    meter = DriftMeter(loop_table)
    step(meter, 5.0, module="vae")
    meter.observe("denoise", 5.0)
    meter.expect(StepPlan())
    meter.observe("denoise", 5.0)
    assert meter.ratios == {}
