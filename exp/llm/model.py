"""Which model is served: an OPT shape with random weights, or a local folder in the Hugging Face layout."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exp.common import BadInput
from neusim.models import MAX_POSITIONS, OPT_SHAPES, VOCABULARY, OptShape, opt_shape


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the experiments need it, before anything is loaded."""

    name: str
    """As its latency table is named."""
    max_positions: int
    vocabulary: int
    shape: OptShape | None = None
    folder: Path | None = None

    @property
    def has_weights(self) -> bool:
        """Whether the folder holds weights; without any they are random (the timing is the same)."""
        return self.folder is not None and any(
            path.suffix in (".safetensors", ".bin", ".pt") for path in self.folder.iterdir()
        )

    @property
    def has_tokenizer(self) -> bool:
        """Whether prompts of a data set can be counted in this model's own tokens."""
        names = ("tokenizer.json", "tokenizer.model", "vocab.json")
        return self.folder is not None and any((self.folder / name).exists() for name in names)

    @contextmanager
    def engine_folder(self) -> Iterator[Path]:
        """A folder with the model's `config.json`, for as long as vLLM loads it: its own, or a temporary one."""
        if self.folder is not None:
            yield self.folder
            return
        assert self.shape is not None
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(opt_config(self.shape)))
            yield Path(folder)


def opt_config(shape: OptShape) -> dict[str, Any]:
    """`config.json` of an OPT model, with the keys of its published checkpoints."""
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "activation_function": "relu",
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.num_heads,
        "ffn_dim": shape.ffn,
        "word_embed_proj_dim": shape.embed,
        "do_layer_norm_before": shape.norm_first,
        "max_position_embeddings": MAX_POSITIONS,
        "vocab_size": VOCABULARY,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "torch_dtype": "float16",
    }


def resolve_model(text: str) -> Model:
    """The model that `--model` names. Raises BadInput for an unknown name or a folder without a usable config."""
    folder = Path(text)
    if (folder / "config.json").is_file():
        try:
            config = json.loads((folder / "config.json").read_text())
            positions, vocabulary = int(config["max_position_embeddings"]), int(config["vocab_size"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{folder / 'config.json'}: {type(error).__name__}: {error}") from error
        return Model(folder.resolve().name, positions, vocabulary, folder=folder.resolve())
    try:
        shape = opt_shape(text)
    except ValueError:
        known = ", ".join(OPT_SHAPES)
        raise BadInput(f"unknown model {text!r}; there are {known}, or a folder with a config.json") from None
    return Model(shape.name, MAX_POSITIONS, VOCABULARY, shape=shape)
