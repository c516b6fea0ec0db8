"""Facts: models, accelerators, this machine, the paper's settings. Numbers only; no framework is imported.

`find_model` is the one place that tells which kind of model a name means.
"""

from __future__ import annotations

from pathlib import Path

from neustream.catalog.images import MODELS, ModelSpec
from neustream.catalog.llms import KNOWN, LlmShape, OptShape, known_shape, load_shape

__all__ = ["LlmShape", "ModelSpec", "OptShape", "find_model"]


def find_model(name: str) -> LlmShape | ModelSpec:
    """The shape of a language model or the specification of an image pipeline of that name.

    `name` may also be a local folder with a language model's `config.json`. Raises ValueError, one line that names the
    known models, for any other name, and for a folder that holds something else.
    """
    spec = MODELS.get(name)
    if spec is not None:
        return spec
    if known_shape(name) is not None or Path(name).is_dir():
        return load_shape(name)
    raise ValueError(f"unknown model {name!r}; there are {KNOWN}; image pipelines: {', '.join(MODELS)}")
