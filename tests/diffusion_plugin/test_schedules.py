"""The rows of coefficients against diffusers' own schedulers, stepping on made-up network outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from torch import Tensor

from diffusion_plugin.denoise import log_variance
from diffusion_plugin.schedules import CoefficientTable, Column, Schedule, build_schedule
from neustream.catalog.images import CLIPPED, LINEAR, SCALED

SHAPE = (1, 2, 4, 4)
OUTPUTS = [torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(30)]
SCHEDULERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "euler": EulerDiscreteScheduler}


def step(schedule: Schedule, i: int, x: Tensor, out: Tensor, noise: Tensor, variance: Tensor | None) -> Tensor:
    """The expression of the module's docstring, written out for one request."""
    row = schedule.rows[i]
    new = row[Column.X] * x + row[Column.M] * out
    x0 = row[Column.X0_X] * x + row[Column.X0_M] * out
    if schedule.is_clipped:
        new = new + row[Column.K] * (x0.clamp(-row[Column.CLIP], row[Column.CLIP]) - x0)
    return new + torch.exp(log_variance(row[:, None, None, None, None], variance) / 2)[0] * noise


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("steps", [1, 3, 30])
@pytest.mark.parametrize("config", [LINEAR, SCALED, CLIPPED], ids=["linear", "scaled", "clipped"])
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "euler"])
def test_rows_step_as_diffusers_scheduler_does(kind: str, config: dict[str, Any], steps: int) -> None:
    scheduler = SCHEDULERS[kind].from_config(config)
    scheduler.set_timesteps(steps)
    schedule = build_schedule(kind, steps, config)
    ours = theirs = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * float(scheduler.init_noise_sigma)
    assert schedule.init_sigma == pytest.approx(float(scheduler.init_noise_sigma))
    draws, generator = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    for i, timestep in enumerate(scheduler.timesteps):
        assert schedule.rows[i, Column.TIMESTEP] == timestep
        seen = scheduler.scale_model_input(theirs, timestep)
        assert_close(ours * schedule.rows[i, Column.SCALE], seen)
        out = OUTPUTS[i][:, :2]
        noise = torch.randn(SHAPE, generator=draws) if schedule.is_noisy else torch.zeros(SHAPE)
        ours = step(schedule, i, ours, out, noise, None)
        theirs = scheduler.step(out, timestep, theirs, generator=generator).prev_sample
        assert_close(ours, theirs)


def test_learned_variance_lies_between_the_bounds_as_in_diffusers() -> None:
    scheduler = DDPMScheduler.from_config({**LINEAR, "variance_type": "learned_range"})
    scheduler.set_timesteps(10)
    schedule = build_schedule("ddpm", 10, LINEAR, learned_variance=True)
    ours = theirs = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    draws, generator = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    for i, timestep in enumerate(scheduler.timesteps):
        noise = torch.randn(SHAPE, generator=draws)
        ours = step(schedule, i, ours, OUTPUTS[i][:, :2], noise, OUTPUTS[i][:, 2:])
        theirs = scheduler.step(OUTPUTS[i], timestep, theirs, generator=generator).prev_sample
        assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "euler"])
@pytest.mark.parametrize("config", [LINEAR, SCALED, CLIPPED], ids=["linear", "scaled", "clipped"])
def test_a_thousand_steps_visit_every_timestep_once(kind: str, config: dict[str, Any]) -> None:
    rows = build_schedule(kind, 1000, config).rows
    assert rows[:, Column.TIMESTEP].tolist() == list(range(999, -1, -1))
    assert not rows.isnan().any()


def test_the_table_keeps_each_schedule_once_and_in_order() -> None:
    table = CoefficientTable(LINEAR, torch.device("cpu"))
    first, second = table.schedule("ddim", 5), table.schedule("ddpm", 3)
    assert table.schedule("ddim", 5) is first
    assert [table.first_row(s) for s in (first, second, first)] == [0, 5, 0]
    assert torch.equal(table.rows, torch.cat([first.rows, second.rows]))


@pytest.mark.parametrize("steps", [0, 1001, -1, 2.5, True])
def test_step_counts_outside_the_training_schedule_are_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match=r"steps must be a whole number in 1…1000, got"):
        build_schedule("ddim", steps, LINEAR)


def test_a_scheduler_that_rows_cannot_express_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type 'v_prediction' cannot be served"):
        build_schedule("ddim", 5, {**LINEAR, "prediction_type": "v_prediction"})
    with pytest.raises(ValueError, match="unknown schedule 'pndm'; there are ddpm, ddim, euler"):
        build_schedule("pndm", 5, LINEAR)
