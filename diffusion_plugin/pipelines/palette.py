"""Palette, inpainting: a UNet that sees the picture beside the latent, and pixels that are known stay as they are.

Saharia et al. (2022): the condition is the input with its hole filled with noise, concatenated to the latent
along the channels; after every step the known pixels are put back. There is no VAE: the latent is the picture,
in −1…1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion_plugin.inputs import read_image, read_mask
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.pool import Field, SlotPool
from diffusion_plugin.request import ImageRequest
from diffusion_plugin.state import Batch


class PalettePipeline(Pipeline):
    """`denoise` (UNet2DModel with six input channels), and nothing else."""

    picture_field = "latent"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unet = self.networks["unet"]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    def fields(self) -> dict[str, Field]:
        side = self.size
        return {
            "known": ((3, side, side), torch.float32),
            "hole": ((1, side, side), torch.bool),
            "condition": ((3, side, side), self.dtype),
        }

    def prepare(self, request: ImageRequest) -> dict[str, Tensor]:
        self.check(request)
        self.refuse(request, "prompt", "negative_prompt", "class_label", "guidance")
        if request.image is None:
            raise ValueError(f"{self.spec.name} needs an image to fill in")
        known = read_image(request.image, self.size) * 2 - 1
        return {"known": known, "hole": read_mask(request.mask, self.size)}

    def first_fields(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Draws the first latent, then the noise in the condition's hole."""
        state = super().first_fields(inputs, generator)
        fill = torch.randn(self.latent_shape, generator=generator, device=self.device)
        state["condition"] = torch.where(inputs["hole"], fill, inputs["known"])
        return state

    def predict(self, pool: SlotPool, batch: Batch, x: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor | None]:
        condition = pool["condition"].index_select(0, batch.slots)
        seen = torch.cat([condition, x.to(self.dtype)], dim=1)
        out: Tensor = self.unet(seen, timesteps, return_dict=False)[0]
        return out.float(), None

    def restore_known(self, pool: SlotPool, batch: Batch, new: Tensor) -> Tensor:
        hole = pool["hole"].index_select(0, batch.slots)
        return torch.where(hole, new, pool["known"].index_select(0, batch.slots))

    def finished(self, picture: Tensor) -> Tensor:
        return picture.div_(2).add_(0.5).clamp_(0, 1)

    def example(self, index: int) -> dict[str, Any]:
        """A smooth picture of its own, with its centre to be made up."""
        ramp = torch.linspace(0, 1, self.size)
        phase = torch.tensor([index, index + 1.0, index + 2.0])[:, None, None]
        picture = (torch.sin(6 * ramp[:, None] + phase) + torch.cos(4 * ramp[None, :] + phase)) / 4 + 0.5
        return {"image": picture}
