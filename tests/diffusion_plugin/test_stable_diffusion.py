"""Stable Diffusion: alone it equals diffusers' own pipeline, for every schedule; among strangers, itself alone."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from image_helpers import image_alone, make_engine, submit
from torch import Tensor
from transformers import CLIPImageProcessor

from diffusion_plugin import ImageRequest, load_pipeline
from diffusion_plugin.pipelines.base import Pipeline

TOLERANCE = 1e-4
SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "euler": EulerDiscreteScheduler}


def reference(pipeline: Pipeline, kind: str) -> StableDiffusionPipeline:
    networks = pipeline.networks
    side = networks["safety_checker"].config.vision_config.image_size
    built = StableDiffusionPipeline(
        vae=networks["vae"],
        text_encoder=networks["text_encoder"],
        tokenizer=pipeline.tokenizer,  # type: ignore[attr-defined]
        unet=networks["unet"],
        scheduler=SCHEDULERS[kind].from_config(dict(pipeline.spec.scheduler)),
        safety_checker=networks["safety_checker"],
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side),
    )
    built.set_progress_bar_config(disable=True)
    return built


def of_diffusers(pipeline: Pipeline, request: ImageRequest) -> tuple[Tensor, bool]:
    out = reference(pipeline, request.schedule or "ddim")(
        request.prompt,
        negative_prompt=request.negative_prompt,
        height=pipeline.size,
        width=pipeline.size,
        guidance_scale=7.5 if request.guidance is None else request.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        num_inference_steps=request.steps,
        output_type="np",
    )
    return torch.from_numpy(out.images[0]).permute(2, 0, 1), out.nsfw_content_detected[0]


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "euler"])
@pytest.mark.parametrize(("guidance", "negative"), [(None, None), (3.0, "blurry"), (1.0, None)])
def test_a_request_alone_equals_diffusers_pipeline(
    sd: Pipeline, kind: str, guidance: float | None, negative: str | None
) -> None:
    request = ImageRequest(
        steps=8, prompt="a castle by the sea", negative_prompt=negative, seed=4, schedule=kind, guidance=guidance
    )
    expected, flagged = of_diffusers(sd, request)
    assert expected.std() > 0.05, "a blank image would prove nothing"
    assert not flagged
    assert (image_alone(sd, request) - expected).abs().max() < TOLERANCE


def test_what_the_safety_checker_flags_is_black_as_in_diffusers() -> None:
    strict = load_pipeline("sd-nano", device="cpu")
    with torch.no_grad():
        strict.networks["safety_checker"].concept_embeds_weights.fill_(-1.0)
    request = ImageRequest(steps=3, prompt="anything", seed=1)
    expected, flagged = of_diffusers(strict, request)
    assert flagged
    engine = make_engine(strict)
    job = submit(engine, request)
    while engine.num_unfinished:
        engine.step()
    assert job.is_flagged
    assert job.image is not None
    assert torch.equal(job.image, expected)
    assert job.image.abs().max() == 0


def test_the_checker_sees_what_clips_own_processor_makes_of_the_images(sd: Pipeline) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    side = sd.networks["safety_checker"].config.vision_config.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
    pictures = VaeImageProcessor.numpy_to_pil(images.permute(0, 2, 3, 1).numpy())
    expected = processor(pictures, return_tensors="pt").pixel_values
    found = sd.clip_pixels(images)  # type: ignore[attr-defined]
    assert (found - expected).abs().max() < 0.05, "rounding to eight bits on the way is all that may differ"


def test_a_late_joiner_among_strangers_equals_itself_alone(sd: Pipeline) -> None:
    engine = make_engine(sd)
    kinds, scales = ("ddim", "ddpm", "euler"), (None, 1.0)
    strangers = [
        ImageRequest(steps=4 + 5 * i, prompt=f"stranger {i}", seed=i, schedule=kinds[i % 3], guidance=scales[i % 2])
        for i in range(5)
    ]
    jobs = [submit(engine, request) for request in strangers]
    for _ in range(8):
        engine.step()
    jobs.append(submit(engine, ImageRequest(steps=17, prompt="a late one", seed=42)))
    modules = set()
    while engine.num_unfinished:
        record = engine.step()
        assert record is not None
        modules.add(record.kind)
    assert modules == {"text_encoder", "denoise", "vae", "safety"}
    for job in jobs:
        assert job.image is not None
        assert (job.image - image_alone(sd, job.asked)).abs().max() < TOLERANCE


def test_a_request_is_encoded_at_once_and_joins_the_next_step(sd: Pipeline) -> None:
    """The whole trace: what runs while one request loops, another comes, and each leaves when it is done."""
    engine = make_engine(sd)
    trace = []

    def step() -> None:
        record = engine.step()
        assert record is not None
        trace.append((record.kind, "".join(record.request_ids)))

    submit(engine, ImageRequest(steps=4, prompt="first", request_id="a"))
    for _ in range(3):
        step()
    submit(engine, ImageRequest(steps=3, prompt="second", request_id="b"))
    while engine.num_unfinished:
        step()
    assert trace == [
        ("text_encoder", "a"),
        ("denoise", "a"),
        ("denoise", "a"),
        ("text_encoder", "b"),
        ("denoise", "ab"),
        ("denoise", "ab"),
        ("vae", "a"),
        ("safety", "a"),
        ("denoise", "b"),
        ("vae", "b"),
        ("safety", "b"),
    ]
