"""DiT: alone it equals diffusers' own pipeline; among strangers it equals itself alone."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTPipeline
from image_helpers import flat_table, image_alone, make_engine, submit
from torch import Tensor

from diffusion_plugin import ImageRequest, serve
from diffusion_plugin.pipelines.base import Pipeline

TOLERANCE = 1e-4


def of_diffusers(pipeline: Pipeline, request: ImageRequest) -> Tensor:
    scheduler = DDIMScheduler(**pipeline.spec.scheduler)
    reference = DiTPipeline(pipeline.networks["transformer"], pipeline.networks["vae"], scheduler)
    reference.set_progress_bar_config(disable=True)
    guidance = 4.0 if request.guidance is None else request.guidance
    images = reference(
        [request.class_label],
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(request.seed),
        num_inference_steps=request.steps,
        output_type="np",
    ).images
    return torch.from_numpy(images[0]).permute(2, 0, 1)


@pytest.mark.parametrize("guidance", [None, 1.0, 0.0, 1.7])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_a_request_alone_equals_diffusers_pipeline(dit: Pipeline, steps: int, guidance: float | None) -> None:
    request = ImageRequest(steps=steps, class_label=207, seed=3, guidance=guidance)
    expected = of_diffusers(dit, request)
    assert expected.std() > 0.05, "a blank image would prove nothing"
    assert (image_alone(dit, request) - expected).abs().max() < TOLERANCE


def test_ddpm_with_learned_variance_equals_a_loop_over_diffusers_scheduler(dit: Pipeline) -> None:
    scheduler = DDPMScheduler.from_config({**dit.spec.scheduler, "variance_type": "learned_range"})
    scheduler.set_timesteps(40)
    generator = torch.Generator().manual_seed(5)
    latent = torch.randn(1, *dit.latent_shape, generator=generator)
    transformer, labels = dit.networks["transformer"], torch.tensor([9, 1000])
    with torch.inference_mode():
        for timestep in scheduler.timesteps:
            out = transformer(torch.cat([latent] * 2), timestep.expand(2), labels).sample
            noise = out[1:, :4] + 4.0 * (out[:1, :4] - out[1:, :4])
            out = torch.cat([noise, out[:1, 4:]], dim=1)
            latent = scheduler.step(out, timestep, latent, generator=generator).prev_sample
        vae = dit.networks["vae"]
        expected = (vae.decode(latent / vae.config.scaling_factor).sample[0] / 2 + 0.5).clamp(0, 1)
    image = image_alone(dit, ImageRequest(steps=40, class_label=9, seed=5, schedule="ddpm"))
    assert (image - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("schedule", ["ddim", "ddpm"])
def test_a_late_joiner_among_strangers_equals_itself_alone(dit: Pipeline, schedule: str) -> None:
    engine = make_engine(dit)
    kinds, scales = ("ddim", "ddpm"), (None, 1.0, 2.0)
    strangers = [
        ImageRequest(steps=5 + 7 * i, class_label=i, seed=i, schedule=kinds[i % 2], guidance=scales[i % 3])
        for i in range(6)
    ]
    jobs = [submit(engine, request) for request in strangers[:4]]
    for _ in range(9):
        engine.step()
    late = ImageRequest(steps=40, class_label=11, seed=42, schedule=schedule)
    jobs.append(submit(engine, late))
    engine.step()
    jobs += [submit(engine, request) for request in strangers[4:]]
    sizes = set()
    while engine.num_unfinished:
        record = engine.step()
        assert record is not None
        sizes.add(record.batch_size)
    assert max(sizes) > 4, "it was to ride in a batch"
    for job in jobs:
        assert job.image is not None
        assert (job.image - image_alone(dit, job.asked)).abs().max() < TOLERANCE


def test_the_same_seed_gives_the_same_image_and_another_seed_another(dit: Pipeline) -> None:
    requests = [ImageRequest(steps=6, class_label=1, seed=seed, slo_scale=1e6) for seed in (8, 8, 9)]
    first, same, other = (result.image for result in serve(dit, requests, table=flat_table(dit)))
    assert first is not None
    assert same is not None
    assert other is not None
    assert torch.allclose(first, same, atol=TOLERANCE)
    assert (first - other).abs().max() > 0.05


def test_an_image_has_the_size_of_its_model_and_goes_to_pil(dit: Pipeline) -> None:
    (result,) = serve(dit, [ImageRequest(steps=2, class_label=0, slo_scale=1e6)], table=flat_table(dit))
    assert result.image is not None
    assert result.image.shape == (3, 32, 32)
    assert result.image.dtype == torch.float32
    assert result.pil().size == (32, 32)
    assert result.met
    assert result.latency == result.ended_at - result.arrival > 0
