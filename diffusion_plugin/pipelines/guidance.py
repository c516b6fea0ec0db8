"""Classifier-free guidance (Ho & Salimans, 2022), with a scale per request."""

from __future__ import annotations

import torch
from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """`unconditional + scale × (conditional − unconditional)`; `scale` has shape (batch,).

    At scale 1 the result is `conditional` to the bit: requests with guidance switched off may ride along.
    """
    return torch.lerp(unconditional, conditional, scale[:, None, None, None])


def decode(vae: torch.nn.Module, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """Images in 0…1 of latents (n, 4, h, w), as diffusers' pipelines decode them; shape (n, 3, 8h, 8w)."""
    samples = vae.decode((latents / vae.config.scaling_factor).to(dtype), return_dict=False)[0]
    images: Tensor = (samples / 2 + 0.5).clamp(0, 1)
    return images
