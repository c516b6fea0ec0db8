"""Weights: from a folder in diffusers' layout, from a hub id where one is given, else random from a seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError  # type: ignore[attr-defined]
from safetensors.torch import load_file
from torch import Tensor, nn

FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
"""Where a network's weights lie in its folder, the first that exists being taken."""
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the VAE's attention in early checkpoints."""
UNUSED = ("position_ids",)
"""Buffers that early checkpoints carry and no network needs."""


def weights_folder(weights: str) -> Path:
    """The folder that `--weights` names: a local one, or that of a hub id (`org/name`), which is downloaded.

    Raises ValueError where there is neither.
    """
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or weights.count("/") != 1 or weights.startswith((".", "/", "~")):
        raise ValueError(f"weights {weights!r}: no such folder, and not a hub id of the form org/name")
    from huggingface_hub import snapshot_download

    try:
        kinds = ["*.json", "*.txt", *(f"*/{name}" for name in FILES if "fp16" not in name)]
        return Path(snapshot_download(weights, allow_patterns=kinds))
    except Exception as error:
        raise ValueError(f"weights {weights!r}: cannot be fetched ({type(error).__name__})") from error


def load_weights(name: str, network: nn.Module, folder: Path) -> None:
    """Load `folder/name` into the network.

    Raises ValueError, naming the first tensor that differs, where one is missing, unexpected or of another shape.
    """
    where = folder / name
    path = next((where / file for file in FILES if (where / file).is_file()), None)
    if path is None:
        raise ValueError(f"weights: {where} has none of {', '.join(FILES)}")
    found = _renamed(_read(path), network)
    wanted = network.state_dict()
    for key, tensor in wanted.items():
        if key not in found:
            raise ValueError(f"weights: {path} lacks tensor {name}.{key} of shape {list(tensor.shape)}")
        if found[key].shape != tensor.shape:
            shapes = f"{list(found[key].shape)}, expected {list(tensor.shape)}"
            raise ValueError(f"weights: {path}: tensor {name}.{key} has shape {shapes}")
    for key in found:
        if key not in wanted:
            raise ValueError(f"weights: {path} has tensor {name}.{key}, which this model has not")
    network.load_state_dict(found)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"weights: {path} cannot be read ({error})") from error


def _renamed(found: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    wanted = set(network.state_dict())
    renamed = {}
    for key, tensor in found.items():
        new = key
        if key not in wanted:
            for old, current in OLD_NAMES.items():
                new = new.replace(old, current)
            if new.endswith(UNUSED):
                continue
        # Early VAE checkpoints store the attention's projections as 1×1 convolutions.
        renamed[new] = tensor.flatten(1) if new != key and tensor.dim() == 4 else tensor
    return renamed


def scheduler_config(folder: Path) -> dict[str, Any]:
    """The arguments that a checkpoint's own scheduler was given; none where it has no such file."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"weights: {path} is not JSON ({error})") from error
    return {key: value for key, value in config.items() if not key.startswith("_")}
