"""Denoising pipelines served step by step on NeuStream's scheduler core.

    pipeline = load_pipeline("dit-nano")
    with Server(pipeline, policy="neustream") as server:
        handle = server.submit(ImageRequest(class_label=207, steps=50, seed=1, slo_scale=3.0))
        result = handle.result()
        print(result.met, result.latency)
        result.pil().save("image.png")

`serve(pipeline, requests)` is the same for a list of requests that all arrive now.
"""

from diffusion_plugin.build import load_pipeline
from diffusion_plugin.engine import Engine
from diffusion_plugin.engine_thread import EngineThread, Handle, Server, serve
from diffusion_plugin.measure import quick_table
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.request import ImageRequest, ImageResult
from neustream.catalog.images import MODELS, ModelSpec

__all__ = [
    "MODELS",
    "Engine",
    "EngineThread",
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
