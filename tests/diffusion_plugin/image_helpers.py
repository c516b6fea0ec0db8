"""An engine whose time stands still, so that no test depends on how fast the machine is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffusion_plugin import Engine, ImageRequest
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.request import Job
from neustream import LatencyTable
from neustream.latency import BatchLatency
from neustream.testing import VirtualClock


def flat_table(pipeline: Pipeline) -> LatencyTable:
    """A table that calls every step 1 ms at any batch size up to 64: batches are as large as can be."""
    flat = BatchLatency((1, 64), (0.001, 0.001))
    return LatencyTable(pipeline.spec.name, "test", dict.fromkeys(pipeline.modules, flat))


def make_engine(pipeline: Pipeline, **options: Any) -> Engine:
    """An engine on a clock that stands still: nobody is ever late, and plans depend on the requests alone."""
    return Engine(pipeline, flat_table(pipeline), **{"clock": VirtualClock(), **options})


def submit(engine: Engine, request: ImageRequest) -> Job:
    """Submit a request; returns its job, so that a test can look at its slot, its image and its end."""
    job = engine.make_job(engine.ask(request))
    engine.add(job)
    return job


def image_alone(pipeline: Pipeline, request: ImageRequest) -> Tensor:
    """The image of a request that is the only one served."""
    engine = make_engine(pipeline)
    job = submit(engine, request)
    while engine.num_unfinished:
        engine.step()
        engine.check_integrity()
    assert job.image is not None, job.request.reason
    return job.image
