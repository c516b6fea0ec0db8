"""The sizes of OPT models: the published family (Zhang et al., 2022), or a local folder's `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neustream.tables import KV_BLOCK

VOCABULARY = 50272
MAX_POSITIONS = 2048
MEMORY_SHARE = 0.9
"""Share of a device's memory that vLLM uses (its default); what weights leave of it is for keys and values."""
FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "num_heads": "num_attention_heads",
    "ffn": "ffn_dim",
    "embed": "word_embed_proj_dim",
    "vocabulary": "vocab_size",
    "max_positions": "max_position_embeddings",
}
"""Our names of the sizes, and those of `config.json`."""


@dataclass(frozen=True, slots=True)
class OptShape:
    """One OPT model: `num_layers` decoder layers of width `hidden`. `name` is that of its latency table."""

    name: str
    num_layers: int
    hidden: int
    num_heads: int
    ffn: int
    embed: int
    """Width of the word embedding; differs from `hidden` in opt-350m only."""
    norm_first: bool = True
    vocabulary: int = VOCABULARY
    max_positions: int = MAX_POSITIONS

    @property
    def layer_parameters(self) -> int:
        """Weights and biases of one decoder layer."""
        h, f = self.hidden, self.ffn
        return 4 * h * (h + 1) + f * (h + 1) + h * (f + 1) + 4 * h

    @property
    def other_parameters(self) -> int:
        """What the model has once: embeddings (the output layer shares them), projections, the last norm."""
        projections = 2 * self.embed * self.hidden if self.embed != self.hidden else 0
        embeddings = self.vocabulary * self.embed + (self.max_positions + 2) * self.hidden
        return embeddings + projections + (2 * self.hidden if self.norm_first else 0)

    @property
    def num_parameters(self) -> int:
        """Weights and biases of the whole model."""
        return self.parameters(self.num_layers)

    def parameters(self, num_layers: int) -> int:
        """Weights and biases at this depth."""
        return self.other_parameters + num_layers * self.layer_parameters

    def kv_elements(self, num_layers: int) -> int:
        """Elements of keys and values per token at this depth."""
        return 2 * num_layers * self.hidden

    def kv_blocks(self, memory_bytes: float, element_bytes: int, block_size: int = KV_BLOCK) -> int:
        """KV blocks that vLLM finds room for on devices with so much memory together; 0 where weights leave none.

        A block holds `block_size` tokens.
        """
        room = MEMORY_SHARE * memory_bytes - self.num_parameters * element_bytes
        return max(int(room / (self.kv_elements(self.num_layers) * element_bytes * block_size)), 0)

    def config(self, num_layers: int | None = None) -> dict[str, Any]:
        """`config.json`, at this depth if one is given, with the keys of the published checkpoints."""
        sizes = {key: getattr(self, field) for field, key in FIELDS.items()}
        return sizes | {
            "num_hidden_layers": num_layers or self.num_layers,
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "activation_function": "relu",
            "do_layer_norm_before": self.norm_first,
            "bos_token_id": 2,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "torch_dtype": "float16",
        }


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
    )
}
KNOWN = f"{', '.join(OPT_SHAPES)} (also as facebook/opt-…), or a local folder with an OPT model's config.json"


def known_shape(model: str) -> OptShape | None:
    """The shape of `opt-…` or `facebook/opt-…`; None for any other name."""
    return OPT_SHAPES.get(model.removeprefix("facebook/"))


def load_shape(model: str) -> OptShape:
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
    if not isinstance(config, dict) or config.get("model_type") != "opt":
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise ValueError(f"{file}: model_type is {kind!r}; only OPT models are known here")
    sizes = {}
    for field, key in FIELDS.items():
        value = config.get(key, config.get("hidden_size") if field == "embed" else None)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{file}: {key} is {value!r}, expected a whole number from 1")
        sizes[field] = value
    if sizes["hidden"] % sizes["num_heads"]:
        raise ValueError(f"{file}: hidden_size {sizes['hidden']} is no multiple of {sizes['num_heads']} heads")
    name = Path(model).resolve().name
    return OptShape(name, norm_first=bool(config.get("do_layer_norm_before", True)), **sizes)
