"""The language models that are known by name, and those of a local folder's `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neustream.catalog.shapes import MEMORY_SHARE, ClipShape, LlamaShape, LlavaShape, LlmShape, OptShape

__all__ = ["KNOWN", "LLMS", "MEMORY_SHARE", "OPT_SHAPES", "LlmShape", "OptShape", "known_shape", "load_shape"]


def _opt(name: str, layers: int, hidden: int, heads: int) -> OptShape:
    return OptShape(name, layers, hidden, heads, 4 * hidden, hidden)


OPT_SHAPES = {
    shape.name: shape
    for shape in (
        _opt("opt-125m", 12, 768, 12),
        OptShape("opt-350m", 24, 1024, 16, 4096, 512, norm_first=False),
        _opt("opt-1.3b", 24, 2048, 32),
        _opt("opt-2.7b", 32, 2560, 32),
        _opt("opt-6.7b", 32, 4096, 32),
        _opt("opt-13b", 40, 5120, 40),
        _opt("opt-30b", 48, 7168, 56),
        _opt("opt-66b", 64, 9216, 72),
        OptShape("opt-nano", 2, 256, 4, 1024, 256, vocabulary=8192),
    )
}
LLAMA_SHAPES = {
    shape.name: shape
    for shape in (
        # Rozière et al., 2023; sizes of the published config.json of CodeLlama-7b and CodeLlama-7b-Instruct.
        LlamaShape("codellama-7b", 32, 4096, 32, 11008, 32, 1e6, vocabulary=32016, max_positions=16384),
        # Liu et al., 2023; sizes of the published config.json of LLaVA-1.5-7b. Its 32064 rows end in padding.
        LlavaShape(
            "llava-1.5-7b", 32, 4096, 32, 11008, 32, vocabulary=32064, max_positions=4096,
            vision=ClipShape(24, 1024, 16, 4096, image_size=336, patch_size=14), picture_token=32000,
        ),
        # The token of pictures is the first id behind the vocabulary: vLLM pads the embedding to a multiple of 64, so
        # that there is a row for it, and random weights never generate it. In a prompt that is prefilled again after
        # a preemption, a generated one would count as a second picture.
        LlavaShape(
            "llava-nano", 2, 256, 4, 688, 4, vocabulary=2000, max_positions=2048,
            vision=ClipShape(3, 128, 2, 512, image_size=112, patch_size=14), picture_token=2000,
        ),
    )
}  # fmt: skip
LLMS: Mapping[str, LlmShape] = {**OPT_SHAPES, **LLAMA_SHAPES}
"""All by name. Those called nano are not published: they are small enough for several engines on two cores."""
KNOWN = f"{', '.join(LLMS)} (opt-… also as facebook/opt-…), or a local folder with an OPT, Llama or LLaVA config.json"

OPT_FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "num_heads": "num_attention_heads",
    "ffn": "ffn_dim",
    "embed": "word_embed_proj_dim",
    "vocabulary": "vocab_size",
    "max_positions": "max_position_embeddings",
}
LLAMA_FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "num_heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "num_kv_heads": "num_key_value_heads",
    "vocabulary": "vocab_size",
    "max_positions": "max_position_embeddings",
}
CLIP_FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "num_heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "image_size": "image_size",
    "patch_size": "patch_size",
}
"""Our names of the sizes, and those of `config.json`."""
LLAMA_DEFAULTS = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
CLIP_DEFAULTS = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
}
"""What a published config.json leaves out where it is the default of transformers' configuration class."""


def known_shape(model: str) -> LlmShape | None:
    """The shape of a known name, or of `facebook/opt-…`; None for any other name."""
    return LLMS.get(model) or OPT_SHAPES.get(model.removeprefix("facebook/"))


def load_shape(model: str) -> LlmShape:
    """The shape of a known name or of a local folder's `config.json`. Raises ValueError, one line."""
    shape = known_shape(model)
    if shape is not None:
        return shape
    if not Path(model).is_dir():
        raise ValueError(f"unknown model {model!r}; there are {KNOWN}")
    file = Path(model) / "config.json"
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); a model folder has a config.json") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error})") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    name = Path(model).resolve().name
    if kind == "opt":
        return _opt_shape(name, config, f"{file}: ")
    if kind == "llama":
        return LlamaShape(name, **_llama_sizes(config, f"{file}: "))
    if kind == "llava":
        return _llava_shape(name, config, f"{file}: ")
    raise ValueError(f"{file}: model_type is {kind!r}; only 'opt', 'llama' and 'llava' are known here")


def _sizes(config: Any, fields: Mapping[str, str], where: str) -> dict[str, int]:
    """Our sizes from those of a configuration. Raises ValueError for one that is missing or no size."""
    sizes = {}
    for name, key in fields.items():
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{where}{key} is {value!r}, expected a whole number from 1")
        sizes[name] = value
    if sizes["hidden"] % sizes["num_heads"]:
        raise ValueError(f"{where}hidden_size {sizes['hidden']} is no multiple of {sizes['num_heads']} heads")
    return sizes


def _opt_shape(name: str, config: Any, where: str) -> OptShape:
    full = {"word_embed_proj_dim": config.get("hidden_size"), **config}
    return OptShape(name, norm_first=bool(config.get("do_layer_norm_before", True)), **_sizes(full, OPT_FIELDS, where))


def _llama_sizes(config: Any, where: str) -> dict[str, Any]:
    full = {**LLAMA_DEFAULTS, **config}
    if full.get("num_key_value_heads") is None:
        full["num_key_value_heads"] = full["num_attention_heads"]
    theta = full.get("rope_theta", 10000.0)
    if not isinstance(theta, int | float) or theta <= 0:
        raise ValueError(f"{where}rope_theta is {theta!r}, expected a number above 0")
    return {**_sizes(full, LLAMA_FIELDS, where), "rope_theta": float(theta)}


def _llava_shape(name: str, config: Any, where: str) -> LlavaShape:
    text, vision, token = config.get("text_config"), config.get("vision_config"), config.get("image_token_index", 32000)
    for key, part, kind in (("text_config", text, "llama"), ("vision_config", vision, "clip_vision_model")):
        if not isinstance(part, dict) or part.get("model_type") != kind:
            found = part.get("model_type") if isinstance(part, dict) else part
            raise ValueError(f"{where}{key} is of model_type {found!r}, expected {kind!r}")
    if not isinstance(token, int) or token < 0:
        raise ValueError(f"{where}image_token_index is {token!r}, expected the id of a token")
    clip = ClipShape(**_sizes({**CLIP_DEFAULTS, **vision}, CLIP_FIELDS, f"{where}vision_config: "))
    if clip.image_size % clip.patch_size:
        raise ValueError(f"{where}image_size {clip.image_size} is no multiple of patch_size {clip.patch_size}")
    return LlavaShape(name, **_llama_sizes(text, f"{where}text_config: "), vision=clip, picture_token=token)
