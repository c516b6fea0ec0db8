"""DiT: a transformer over latent patches, conditioned on a class, with guidance and learned variance; then a VAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.pipelines.guidance import guide
from diffusion_plugin.pipelines.vae import decode
from diffusion_plugin.pool import Field, SlotPool
from diffusion_plugin.request import ImageRequest
from diffusion_plugin.state import Batch
from neustream.catalog.images import NUM_CLASSES, VAE_SCALE


class DitPipeline(Pipeline):
    """`denoise` (DiTTransformer2DModel) and `vae` (AutoencoderKL's decoder)."""

    has_learned_variance = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.transformer = self.networks["transformer"]
        self.vae = self.networks["vae"]
        self.runners["vae"] = self._decode

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.size // VAE_SCALE
        return 4, side, side

    def fields(self) -> dict[str, Field]:
        return {
            "label": ((), torch.int64),
            "guidance": ((), torch.float32),
            "image": ((3, self.size, self.size), self.dtype),
        }

    def prepare(self, request: ImageRequest) -> dict[str, Tensor]:
        self.check(request)
        self.refuse(request, "prompt", "negative_prompt", "image", "mask")
        label = request.class_label
        if label is None:
            raise ValueError(f"{self.spec.name} needs a class_label in 0…{NUM_CLASSES - 1}")
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < NUM_CLASSES:
            raise ValueError(f"class_label must be a whole number in 0…{NUM_CLASSES - 1}, got {label!r}")
        guidance = self.spec.guidance if request.guidance is None else request.guidance
        return {"label": torch.tensor(label), "guidance": torch.tensor(max(guidance, 1.0))}

    def predict(self, pool: SlotPool, batch: Batch, x: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor | None]:
        labels = pool["label"].index_select(0, batch.slots)
        if batch.is_guided:
            labels = torch.cat([labels, torch.full_like(labels, NUM_CLASSES)])
            x, timesteps = torch.cat([x, x]), torch.cat([timesteps, timesteps])
        out = self.transformer(x.to(self.dtype), timesteps, labels, return_dict=False)[0].float()
        channels = self.latent_shape[0]
        noise = out[:, :channels]
        if not batch.is_guided:
            return noise, out[:, channels:]
        conditional, unconditional = noise.chunk(2)
        scale = pool["guidance"].index_select(0, batch.slots)
        return guide(conditional, unconditional, scale), out[: len(conditional), channels:]

    def _decode(self, pool: SlotPool, batch: Batch) -> None:
        latents = pool["latent"].index_select(0, batch.slots)
        pool["image"].index_copy_(0, batch.slots, decode(self.vae, latents, self.dtype))

    def example(self, index: int) -> dict[str, Any]:
        return {"class_label": index % NUM_CLASSES}
