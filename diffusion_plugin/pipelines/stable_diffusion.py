"""Stable Diffusion v1.5: CLIP text encoder, UNet with guidance, VAE, safety checker."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.pipelines.guidance import guide
from diffusion_plugin.pipelines.vae import decode
from diffusion_plugin.pool import Field, SlotPool
from diffusion_plugin.request import ImageRequest
from diffusion_plugin.state import Batch
from diffusion_plugin.tokenizer import load_tokenizer
from neustream.catalog.images import VAE_SCALE

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation per channel of the pixels that CLIP was trained on (Radford et al., 2021)."""


class StableDiffusionPipeline(Pipeline):
    """`text_encoder` (CLIPTextModel), `denoise` (UNet2DConditionModel), `vae`, `safety` (diffusers' checker).

    A prompt and its negative prompt are encoded together, so a request has two rows of tokens and embeddings.
    """

    flag_field = "flagged"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.text_encoder = self.networks["text_encoder"]
        self.unet = self.networks["unet"]
        self.vae = self.networks["vae"]
        self.safety_checker = self.networks["safety_checker"]
        self.tokenizer = load_tokenizer(self.folder)
        self.runners |= {"text_encoder": self._encode, "vae": self._decode, "safety": self._check_safety}
        self._clip_mean = torch.tensor(CLIP_MEAN, device=self.device)[:, None, None]
        self._clip_std = torch.tensor(CLIP_STD, device=self.device)[:, None, None]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.size // VAE_SCALE
        return 4, side, side

    def fields(self) -> dict[str, Field]:
        length, width = self.tokenizer.model_max_length, self.text_encoder.config.hidden_size
        return {
            "tokens": ((2, length), torch.int64),
            "embeds": ((2, length, width), self.dtype),
            "guidance": ((), torch.float32),
            "image": ((3, self.size, self.size), self.dtype),
            "flagged": ((), torch.bool),
        }

    def prepare(self, request: ImageRequest) -> dict[str, Tensor]:
        self.check(request)
        self.refuse(request, "class_label", "image", "mask")
        if not isinstance(request.prompt, str):
            raise ValueError(f"{self.spec.name} needs a prompt, got {request.prompt!r}")
        guidance = self.spec.guidance if request.guidance is None else request.guidance
        tokens = self.tokenizer(
            [request.prompt, request.negative_prompt or ""],
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return {"tokens": tokens, "guidance": torch.tensor(max(guidance, 1.0))}

    def predict(self, pool: SlotPool, batch: Batch, x: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor | None]:
        embeds = pool["embeds"].index_select(0, batch.slots)
        if not batch.is_guided:
            return self._unet(x, timesteps, embeds[:, 0]), None
        both = embeds.transpose(0, 1).flatten(0, 1)
        noise = self._unet(torch.cat([x, x]), torch.cat([timesteps, timesteps]), both)
        conditional, unconditional = noise.chunk(2)
        return guide(conditional, unconditional, pool["guidance"].index_select(0, batch.slots)), None

    def _unet(self, x: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        out: Tensor = self.unet(x.to(self.dtype), timesteps, embeds, return_dict=False)[0]
        return out.float()

    def _encode(self, pool: SlotPool, batch: Batch) -> None:
        tokens = pool["tokens"].index_select(0, batch.slots)
        embeds = self.text_encoder(tokens.flatten(0, 1))[0]
        pool["embeds"].index_copy_(0, batch.slots, embeds.to(self.dtype).unflatten(0, (-1, 2)))

    def _decode(self, pool: SlotPool, batch: Batch) -> None:
        latents = pool["latent"].index_select(0, batch.slots)
        pool["image"].index_copy_(0, batch.slots, decode(self.vae, latents, self.dtype))

    def _check_safety(self, pool: SlotPool, batch: Batch) -> None:
        """Blacken what the checker flags, by its own batched rule."""
        images = pool["image"].index_select(0, batch.slots)
        images, flagged = self.safety_checker.forward_onnx(self.clip_pixels(images), images)
        pool["flagged"].index_copy_(0, batch.slots, flagged)
        pool["image"].index_copy_(0, batch.slots, images)  # the last operation, so that the module can be run again

    def clip_pixels(self, images: Tensor) -> Tensor:
        """What CLIP's image processor makes of 8-bit images: bicubic to its size, normalised; same shape but sides."""
        side = self.safety_checker.config.vision_config.image_size
        pixels = torch.nan_to_num(images.float()).mul(255).round().div(255)
        if pixels.shape[-1] != side:
            pixels = functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return ((pixels - self._clip_mean) / self._clip_std).to(self.dtype)

    def example(self, index: int) -> dict[str, Any]:
        return {"prompt": f"photograph number {index} of an astronaut riding a horse"}
