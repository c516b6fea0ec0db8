"""Builds a pipeline by its model's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel

from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.pipelines.dit import DitPipeline
from diffusion_plugin.pipelines.palette import PalettePipeline
from diffusion_plugin.pipelines.stable_diffusion import StableDiffusionPipeline
from diffusion_plugin.request import check_size
from diffusion_plugin.weights import load_weights, scheduler_config, weights_folder
from neustream.catalog.images import VAE_SCALE, ModelSpec, model_spec

PIPELINES: Mapping[str, type[Pipeline]] = {
    "dit": DitPipeline,
    "sd": StableDiffusionPipeline,
    "palette": PalettePipeline,
}


def load_pipeline(
    name: str,
    *,
    weights: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    size: int | None = None,
    seed: int = 0,
) -> Pipeline:
    """The pipeline of model `name`, ready to serve.

    `weights` is a folder in diffusers' layout or a hub id (see `weights_folder`); without it the weights are random,
    drawn from `seed`, and nothing is downloaded. By default it runs on a GPU in float16 where there is one, else on the
    CPU in float32. Raises ValueError for an unknown name, a device that is not there, a size that the model
    cannot make, or weights of another shape.
    """
    spec = model_spec(name)
    check_size(size, spec.multiple)
    side = size or spec.size
    place = pick_device(device)
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else torch.float16
    folder = weights_folder(weights, spec.networks) if weights is not None else None
    networks: dict[str, Any] = {}
    for part, config in spec.networks.items():
        network = random_network(spec, part, _sized(spec, part, config, side), seed)
        if folder is not None:
            load_weights(part, network, folder)
        networks[part] = network.to(device=place, dtype=dtype).eval().requires_grad_(False)
    scheduler = {**spec.scheduler, **(scheduler_config(folder) if folder is not None else {})}
    return PIPELINES[spec.family](
        spec, networks, size=side, device=place, dtype=dtype, scheduler=scheduler, folder=folder
    )


def set_threads(spec: ModelSpec, device: torch.device | str) -> int:
    """Choose how many CPU threads this process's steps use; returns the number.

    A nano model's tensors are too small to be worth sharing: a second thread makes its steps slower and less
    even. Others get PyTorch's default. For programs whose process serves one model; a library call it is not.
    """
    if torch.device(device).type == "cpu" and spec.is_nano:
        torch.set_num_threads(1)
    threads: int = torch.get_num_threads()
    return threads


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is. Raises ValueError for one that is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        detail = str(error).strip().splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used: {detail}") from error
    return place


def _sized(spec: ModelSpec, part: str, config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The network's arguments for images of another size than the model's own."""
    if size == spec.size or "sample_size" not in config:
        return dict(config)
    return {**config, "sample_size": size if spec.family == "palette" else size // VAE_SCALE}


def random_network(spec: ModelSpec, part: str, config: Mapping[str, Any], seed: int) -> nn.Module:
    """The network with weights drawn from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = _construct(spec, part, config)
    return network


def _construct(spec: ModelSpec, part: str, config: Mapping[str, Any]) -> nn.Module:
    if part == "transformer":
        return DiTTransformer2DModel(**config)
    if part == "vae":
        return AutoencoderKL(**config)
    if part == "unet":
        return (UNet2DModel if spec.family == "palette" else UNet2DConditionModel)(**config)
    if part == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**config))
    assert part == "safety_checker", part
    vision = dict(config)
    return StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=vision["projection_dim"]))
