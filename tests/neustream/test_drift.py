"""The running median of measured over predicted seconds."""

from __future__ import annotations

import random

import pytest

from neustream import Request, StepPlan
from neustream.drift import PACE, DriftMeter
from neustream.slo import NO_DEADLINES
from neustream.workload import pipeline_route


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
    for _ in range(100):
        step(meter, seconds)
    assert meter.ratios["denoise"] == pytest.approx(seconds, abs=PACE)


def test_rare_long_steps_do_not_count_and_noise_evens_out(loop_table):
    meter, dice = DriftMeter(loop_table), random.Random(0)
    for i in range(400):
        step(meter, 9.0 if i % 10 == 0 else 1.0 + dice.uniform(-0.01, 0.01))
    assert meter.ratios["denoise"] == pytest.approx(1.0, abs=0.02)


def test_it_never_leaves_its_range(loop_table):
    meter = DriftMeter(loop_table)
    for _ in range(1000):
        step(meter, 50.0)
    assert meter.ratios["denoise"] == 2.0


def test_a_step_that_was_not_expected_teaches_nothing(loop_table):
    meter = DriftMeter(loop_table)
    step(meter, 5.0, module="vae")
    meter.observe("denoise", 5.0)
    meter.expect(StepPlan())
    meter.observe("denoise", 5.0)
    assert meter.ratios == {}
