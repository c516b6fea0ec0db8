"""The models that can be served, by name: the shapes of their networks, as published with their checkpoints.

`dit-*`: Peebles & Xie, "Scalable Diffusion Models with Transformers" (2023). `sd15-*`: Stable Diffusion v1.5
(Rombach et al., 2022) with its CLIP text encoder and safety checker. `palette-256`: the inpainting model of
Saharia et al., "Palette" (2022), on diffusers' own UNet blocks. The `-nano` ones have the same parts in sizes
that take milliseconds on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from neustream.catalog.paper import STEPS

Family = Literal["dit", "sd", "palette"]
VAE_SCALE = 8
"""Pixels per latent, along each side, of the VAE."""
NUM_CLASSES = 1000
HUB_REVISIONS: Mapping[str, str] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
}
"""Checkpoints on the Hugging Face hub that fit a model here and have safetensors: id → the commit that is taken."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: the constructor arguments of its networks, by diffusers' folder name, and its defaults."""

    name: str
    family: Family
    size: int
    """Side of its square images, in pixels."""
    multiple: int
    """What the side must be a multiple of."""
    modules: tuple[str, ...]
    networks: Mapping[str, Mapping[str, Any]]
    steps: tuple[int, int]
    """Step counts of the experiments, uniform in lo…hi−1."""
    guidance: float
    schedules: tuple[str, ...]
    """Noise schedules that it can be asked for; the first is the default."""
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of diffusers' schedulers that its training fixed."""

    @property
    def is_nano(self) -> bool:
        """Whether it is one of those that are made for a CPU."""
        return self.name.endswith("-nano")

    @property
    def max_batch(self) -> int:
        """The largest batch to profile, memory permitting. A CPU's steps are uneven beyond that of the nano ones."""
        return 32 if self.is_nano else 64


VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "norm_num_groups": 32, "layers_per_block": 2,
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "scaling_factor": 0.18215,
}  # fmt: skip
NANO_VAE = {**VAE, "norm_num_groups": 4, "layers_per_block": 1, "block_out_channels": (8, 8, 16, 16)}

CLIP_TEXT = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
NANO_TEXT = {
    **CLIP_TEXT, "vocab_size": 514, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "projection_dim": 32,
}  # fmt: skip

CLIP_VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
NANO_VISION = {
    **CLIP_VISION, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 16, "projection_dim": 32,
}  # fmt: skip

SD_UNET = {
    "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": 8, "cross_attention_dim": 768, "norm_num_groups": 32,
}  # fmt: skip
NANO_UNET = {
    **SD_UNET, "layers_per_block": 1, "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2, "cross_attention_dim": 32, "norm_num_groups": 8,
}  # fmt: skip

PALETTE_UNET = {
    "in_channels": 6, "out_channels": 3, "layers_per_block": 2, "block_out_channels": (64, 128, 256, 512),
    "down_block_types": ("DownBlock2D",) * 3 + ("AttnDownBlock2D",),
    "up_block_types": ("AttnUpBlock2D",) + ("UpBlock2D",) * 3,
    "attention_head_dim": 32, "norm_num_groups": 32,
}  # fmt: skip
NANO_PALETTE = {
    **PALETTE_UNET, "layers_per_block": 1, "block_out_channels": (8, 16, 16), "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D",) * 2 + ("AttnDownBlock2D",),
    "up_block_types": ("AttnUpBlock2D",) + ("UpBlock2D",) * 2, "norm_num_groups": 4,
}  # fmt: skip

LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
SCALED = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
CLIPPED = {**LINEAR, "clip_sample": True}


def _dit(name: str, size: int, layers: int, heads: int, head_dim: int, vae: Mapping[str, Any]) -> ModelSpec:
    transformer = {
        "num_attention_heads": heads, "attention_head_dim": head_dim, "num_layers": layers, "in_channels": 4,
        "out_channels": 8, "sample_size": size // VAE_SCALE, "patch_size": 2, "attention_bias": True,
        "num_embeds_ada_norm": NUM_CLASSES,
    }  # fmt: skip
    networks = {"transformer": transformer, "vae": vae}
    modules = ("denoise", "vae")
    return ModelSpec(name, "dit", size, 16, modules, networks, STEPS["dit"], 4.0, ("ddim", "ddpm"), LINEAR)


def _sd(name: str, size: int, networks: Mapping[str, Any]) -> ModelSpec:
    modules = ("text_encoder", "denoise", "vae", "safety")
    schedules = ("ddim", "ddpm", "euler")
    return ModelSpec(name, "sd", size, 8, modules, networks, STEPS["sd"], 7.5, schedules, SCALED)


def _palette(name: str, size: int, unet: Mapping[str, Any]) -> ModelSpec:
    networks = {"unet": {**unet, "sample_size": size}}
    return ModelSpec(name, "palette", size, 8, ("denoise",), networks, STEPS["palette"], 1.0, ("ddpm", "ddim"), CLIPPED)


def _sd_networks(size: int) -> dict[str, Any]:
    unet = {**SD_UNET, "sample_size": size // VAE_SCALE}
    return {"text_encoder": CLIP_TEXT, "unet": unet, "vae": VAE, "safety_checker": CLIP_VISION}


NANO_SD = {
    "text_encoder": NANO_TEXT, "unet": {**NANO_UNET, "sample_size": 4}, "vae": NANO_VAE, "safety_checker": NANO_VISION,
}  # fmt: skip

MODELS: Mapping[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _dit("dit-s-2-256", 256, 12, 6, 64, VAE),
        _dit("dit-xl-2-256", 256, 28, 16, 72, VAE),
        _palette("palette-256", 256, PALETTE_UNET),
        _sd("sd15-256", 256, _sd_networks(256)),
        _sd("sd15-512", 512, _sd_networks(512)),
        _dit("dit-nano", 32, 12, 2, 16, NANO_VAE),
        _sd("sd-nano", 32, NANO_SD),
        _palette("palette-nano", 16, NANO_PALETTE),
    )
}


def model_spec(name: str) -> ModelSpec:
    """The model of that name. Raises ValueError, naming the known ones, for any other."""
    spec = MODELS.get(name)
    if spec is None:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    return spec
