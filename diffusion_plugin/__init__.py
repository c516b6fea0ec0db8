"""Denoising pipelines served step by step on NeuStream's scheduler core.

    pipeline = load_pipeline("dit-nano")
    with Server(pipeline, policy="neustream") as server:
        handle = server.submit(ImageRequest(class_label=207, steps=50, seed=1, slo_scale=3.0))
        result = handle.result()
        print(result.met, result.latency)
        result.pil().save("image.png")

`serve(pipeline, requests)` is the same for a list of requests that all arrive now.

Names are imported when they are first used: `neustream.catalog.images` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_plugin.build import load_pipeline
    from diffusion_plugin.engine import Engine
    from diffusion_plugin.engine_thread import Handle, Server, serve
    from diffusion_plugin.measure import quick_table
    from diffusion_plugin.pipelines.base import Pipeline
    from diffusion_plugin.request import ImageRequest, ImageResult
    from neustream.catalog.images import MODELS, ModelSpec

__all__ = [
    "MODELS",
    "Engine",
    "Handle",
    "ImageRequest",
    "ImageResult",
    "ModelSpec",
    "Pipeline",
    "Server",
    "load_pipeline",
    "quick_table",
    "serve",
]

_HOMES = {
    "Engine": "engine",
    "Handle": "engine_thread",
    "ImageRequest": "request",
    "ImageResult": "request",
    "Pipeline": "pipelines.base",
    "Server": "engine_thread",
    "load_pipeline": "build",
    "quick_table": "measure",
    "serve": "engine_thread",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
