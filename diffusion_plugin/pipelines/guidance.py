"""Classifier-free guidance (Ho & Salimans, 2022), with a scale per request."""

from __future__ import annotations

import torch
from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """`unconditional + scale × (conditional − unconditional)`; `scale` has shape (batch,).

    At scale 1 the result is `conditional` to the bit: requests with guidance switched off may ride along.
    """
    return torch.lerp(unconditional, conditional, scale[:, None, None, None])
