"""Weights: from a folder in diffusers' layout, from a hub id where one is given, else random from a seed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError  # type: ignore[attr-defined]
from safetensors.torch import load_file
from torch import Tensor, nn

from neustream.catalog.images import HUB_REVISIONS

FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors",
    "model.fp16.safetensors",
)
"""Where a network's weights lie in its folder, the first that exists being taken."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>.*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the VAE's attention in early checkpoints."""
UNUSED = ("position_ids",)
"""Buffers that early checkpoints carry and no network needs."""


def weights_folder(weights: str, parts: Iterable[str]) -> Path:
    """The folder that `--weights` names: a local one, or that of a hub id, of which `parts` are downloaded.

    A hub id is `org/name@COMMIT`; those of `catalog.images.HUB_REVISIONS` need no commit. Raises ValueError, one line,
    for anything else, and where the hub cannot be reached.
    """
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder
    found = HUB_ID.fullmatch(weights)
    if folder.exists() or found is None or weights.startswith((".", "/", "~")):
        raise ValueError(f"weights {weights!r}: no such folder, and not a hub id of the form org/name@COMMIT")
    hub_id = found["id"]
    revision = found["revision"] or HUB_REVISIONS.get(hub_id)
    if revision is None:
        pinned = ", ".join(HUB_REVISIONS)
        raise ValueError(f"weights {weights!r}: say which commit, as {hub_id}@COMMIT; without one there is {pinned}")
    if not COMMIT.fullmatch(revision):
        raise ValueError(f"weights {weights!r}: a commit is 40 hexadecimal digits, as tags and branches move")
    from huggingface_hub import snapshot_download

    wanted = [f"{part}/{name}" for part in parts for name in FILES if "fp16" not in name]
    try:
        return Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=["scheduler/scheduler_config.json", "tokenizer/*", *wanted]
            )
        )
    except Exception as error:
        raise ValueError(f"weights {weights!r}: cannot be fetched ({type(error).__name__})") from error


def load_weights(name: str, network: nn.Module, folder: Path) -> None:
    """Load `folder/name` into the network.

    Raises ValueError, naming the first tensor that differs, where one is missing, unexpected or of another shape.
    """
    where = folder / name
    path = next((where / file for file in FILES if (where / file).is_file()), None)
    if path is None:
        raise ValueError(_nothing_to_read(where))
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


def _nothing_to_read(where: Path) -> str:
    pickles = sorted(path for path in where.glob("*") if path.suffix in PICKLES)
    if pickles:
        how = "save_pretrained(FOLDER, safe_serialization=True) of diffusers makes one"
        return f"weights: {pickles[0]} is a pickle, which can run code when it is read; give safetensors: {how}"
    return f"weights: {where} has none of {', '.join(FILES)}; nothing else is read, .bin files least of all"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
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
