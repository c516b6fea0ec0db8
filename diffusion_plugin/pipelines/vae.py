"""The decoder that DiT and Stable Diffusion share: from latents to pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def decode(vae: torch.nn.Module, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """Images in 0…1 of latents (n, 4, h, w), as diffusers' pipelines decode them; shape (n, 3, 8h, 8w)."""
    samples = vae.decode((latents / vae.config.scaling_factor).to(dtype), return_dict=False)[0]
    images: Tensor = (samples / 2 + 0.5).clamp(0, 1)
    return images
