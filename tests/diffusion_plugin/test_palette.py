"""Palette: the known region is kept, the hole is made up as a plain loop over diffusers' scheduler would."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from image_helpers import image_alone, make_engine, submit

from diffusion_plugin import ImageRequest
from diffusion_plugin.pipelines.base import Pipeline

TOLERANCE = 1e-4
SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}


@pytest.fixture
def picture(palette: Pipeline) -> torch.Tensor:
    return palette.example(3)["image"]


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_a_request_alone_equals_a_loop_over_diffusers_scheduler(
    palette: Pipeline, picture: torch.Tensor, kind: str
) -> None:
    request = ImageRequest(steps=12, image=picture, seed=6, schedule=kind)
    scheduler = SCHEDULERS[kind].from_config(dict(palette.spec.scheduler))
    scheduler.set_timesteps(12)
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(1, *palette.latent_shape, generator=generator)
    fill = torch.randn(1, *palette.latent_shape, generator=generator)
    hole = palette.prepare(request)["hole"]
    known = picture * 2 - 1
    condition = torch.where(hole, fill, known)
    with torch.inference_mode():
        for timestep in scheduler.timesteps:
            out = palette.networks["unet"](torch.cat([condition, x], dim=1), timestep).sample
            extra = {"generator": generator} if kind == "ddpm" else {}
            x = torch.where(hole, scheduler.step(out, timestep, x, **extra).prev_sample, known)
    expected = (x[0] / 2 + 0.5).clamp(0, 1)
    assert (image_alone(palette, request) - expected).abs().max() < TOLERANCE


def test_the_known_region_is_kept_at_every_step_and_the_hole_is_not(palette: Pipeline, picture: torch.Tensor) -> None:
    mask = torch.zeros(palette.size, palette.size)
    mask[: palette.size // 2] = 1.0
    engine = make_engine(palette)
    job = submit(engine, ImageRequest(steps=6, image=picture, mask=mask, seed=1))
    known = (picture * 2 - 1)[:, palette.size // 2 :]
    while engine.num_unfinished:
        engine.step()
        if job.slot is not None:
            latent = engine.executor.state.pool["latent"][job.slot]
            assert torch.equal(latent[:, palette.size // 2 :], known)
    assert job.image is not None
    assert torch.allclose(job.image[:, palette.size // 2 :], picture[:, palette.size // 2 :], atol=1e-6)
    assert (job.image - picture)[:, : palette.size // 2].abs().max() > 0.05


def test_a_late_joiner_among_strangers_equals_itself_alone(palette: Pipeline) -> None:
    engine = make_engine(palette)
    kinds = ("ddpm", "ddim")
    jobs = [
        submit(engine, ImageRequest(steps=4 + 5 * i, seed=i, schedule=kinds[i % 2], **palette.example(i)))
        for i in range(4)
    ]
    for _ in range(6):
        engine.step()
    jobs.append(submit(engine, ImageRequest(steps=15, seed=42, **palette.example(9))))
    while engine.num_unfinished:
        engine.step()
    for job in jobs:
        assert job.image is not None
        assert (job.image - image_alone(palette, job.asked)).abs().max() < TOLERANCE


def test_noise_is_drawn_in_blocks_without_a_seam(palette: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ImageRequest(steps=9, seed=3, schedule="ddpm", **palette.example(0))
    whole = image_alone(palette, request)
    monkeypatch.setattr("diffusion_plugin.state.NOISE_ELEMENTS", 2 * whole.numel())
    assert make_engine(palette).executor.state.block == 2
    assert torch.equal(image_alone(palette, request), whole)
