"""Pictures and masks that users hand in: from files, PIL or tensors, to the pipeline's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor


def read_image(source: Any, size: int) -> Tensor:
    """A float tensor (3, size, size) in 0…1 of a path, a PIL image or such a tensor of any size.

    Raises ValueError, one line, for what cannot be read.
    """
    if isinstance(source, Tensor):
        if source.dim() != 3 or source.shape[0] != 3 or not source.is_floating_point():
            shape = f"{str(source.dtype).removeprefix('torch.')} {list(source.shape)}"
            raise ValueError(f"an input image must be a float tensor of shape [3, H, W], got {shape}")
        if not bool(torch.isfinite(source).all()) or float(source.min()) < 0 or float(source.max()) > 1:
            raise ValueError("an input image must be a tensor of values in 0…1")
        if source.shape[1:] == (size, size):
            return source.float()
        scaled = torch.nn.functional.interpolate(
            source[None].float(), (size, size), mode="bicubic", antialias=True, align_corners=False
        )
        return scaled[0].clamp(0, 1)
    picture = _open(source, "input image").convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)


def read_mask(source: Any, size: int) -> Tensor:
    """A bool tensor (1, size, size), true in the hole, of a path, a PIL image or a tensor (H, W); white is the hole.

    None is a square of half the side in the centre. Raises ValueError, one line, for what cannot be read.
    """
    if source is None:
        hole = torch.zeros(1, size, size, dtype=torch.bool)
        quarter = size // 4
        hole[:, quarter : size - quarter, quarter : size - quarter] = True
        return hole
    if isinstance(source, Tensor):
        if source.dim() != 2:
            raise ValueError(f"a mask must be a tensor of shape [H, W], got {list(source.shape)}")
        source = Image.fromarray(((source.float() > 0.5).to(torch.uint8) * 255).cpu().numpy())
    picture = _open(source, "mask").convert("L").resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(picture) > 127)[None]


def _open(source: Any, what: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, str | Path):
        raise ValueError(f"{what} must be a path, a PIL image or a tensor, got {type(source).__name__}")
    try:
        with Image.open(source) as picture:
            opened: Image.Image = picture.copy()
            return opened
    except FileNotFoundError as error:
        raise ValueError(f"{what} {str(source)!r} cannot be read: no such file") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{what} {str(source)!r} cannot be read: not a picture of a known format") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        detail = getattr(error, "strerror", None) or error
        raise ValueError(f"{what} {str(source)!r} cannot be read: {detail}") from error
