"""OPT models as the profiler needs them: what they weigh, and the `config.json` that an engine reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neusim.models import MAX_POSITIONS, OPT_SHAPES, VOCABULARY, opt_shape

KNOWN = f"{', '.join(OPT_SHAPES)} (also as facebook/opt-…), or a local folder with an OPT model's config.json"
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
class OptModel:
    """The sizes of one OPT model; `name` is that of its table."""

    name: str
    num_layers: int
    hidden: int
    num_heads: int
    ffn: int
    embed: int
    vocabulary: int = VOCABULARY
    max_positions: int = MAX_POSITIONS
    norm_first: bool = True

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
        return embeddings + projections + 2 * self.hidden

    def parameters(self, num_layers: int) -> int:
        """Weights and biases at this depth."""
        return self.other_parameters + num_layers * self.layer_parameters

    def kv_elements(self, num_layers: int) -> int:
        """Elements of keys and values per token at this depth."""
        return 2 * num_layers * self.hidden

    def config(self, num_layers: int) -> dict[str, Any]:
        """`config.json` at this depth, with the keys of the published checkpoints."""
        sizes = {key: getattr(self, field) for field, key in FIELDS.items()} | {"num_hidden_layers": num_layers}
        return sizes | {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "activation_function": "relu",
            "do_layer_norm_before": self.norm_first,
            "bos_token_id": 2,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "torch_dtype": "float16",
        }


def names(model: str) -> str | None:
    """The table's name of an OPT model, None for another name.

    Raises ValueError for a local folder that holds no OPT model.
    """
    if model.removeprefix("facebook/") in OPT_SHAPES or Path(model).is_dir():
        return load(model).name
    return None


def load(model: str) -> OptModel:
    """The sizes of a known name or of a local folder's `config.json`. Raises ValueError, one line."""
    if model.removeprefix("facebook/") in OPT_SHAPES:
        shape = opt_shape(model)
        return OptModel(
            shape.name, shape.num_layers, shape.hidden, shape.num_heads, shape.ffn, shape.embed,
            norm_first=shape.norm_first,
        )
    file = Path(model) / "config.json"
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); a model folder has a config.json") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error})") from error
    if not isinstance(config, dict) or config.get("model_type") != "opt":
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise ValueError(f"{file}: model_type is {kind!r}; only OPT models are profiled")
    sizes = {}
    for field, key in FIELDS.items():
        value = config.get(key, config.get("hidden_size") if field == "embed" else None)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{file}: {key} is {value!r}, expected a whole number from 1")
        sizes[field] = value
    if sizes["hidden"] % sizes["num_heads"]:
        raise ValueError(f"{file}: hidden_size {sizes['hidden']} is no multiple of {sizes['num_heads']} heads")
    name = Path(model).resolve().name
    return OptModel(name, norm_first=bool(config.get("do_layer_norm_before", True)), **sizes)
