"""Which model is served: an OPT shape with random weights, or a local folder in the Hugging Face layout."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from neustream.catalog.llms import LlmShape, known_shape, load_shape
from neustream.cli.arguments import BadInput


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the experiments need it, before anything is loaded."""

    shape: LlmShape
    folder: Path | None = None

    @property
    def name(self) -> str:
        """As its latency table is named."""
        return self.shape.name

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
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(self.shape.config()))
            yield Path(folder)


def resolve_model(text: str) -> Model:
    """The model that `--model` names. Raises BadInput for an unknown name or a folder without a usable config."""
    try:
        shape = load_shape(text)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if shape.picture_tokens:
        raise BadInput(f"{shape.name} reads pictures, which this experiment does not send; name a model of texts")
    return Model(shape, folder=Path(text).resolve() if known_shape(text) is None else None)
