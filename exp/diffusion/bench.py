"""Brings the diffusion engine to the common runner: the requests of a setting, and a driver for it."""

from __future__ import annotations

import gc
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_plugin.build import load_pipeline, set_threads
from diffusion_plugin.engine import Engine
from diffusion_plugin.measure import ModuleTimer
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.request import ImageRequest, to_pil
from exp.diffusion.config import ImageOptions
from exp.harness.settings import Setting
from neustream import LatencyTable, Request
from neustream.cli.arguments import BadInput
from neustream.driver import Ask
from neustream.records import StepRecord
from neustream.workload import gamma_arrivals, step_counts


@dataclass(frozen=True, slots=True)
class DiffusionBench:
    """Implements `exp.harness.runner.Bench` on one loaded pipeline."""

    pipeline: Pipeline
    table: LatencyTable
    policy: str
    num_requests: int
    steps: tuple[int, int]
    """Denoising steps of a request: the lowest, and one past the highest."""
    schedule: str | None = None
    image: Path | None = None
    save_images: Path | None = None

    def asks(self, setting: Setting) -> list[Ask]:
        """The setting's requests: arrivals by rate, cv and seed, step counts by seed; the same for every policy."""
        offsets = gamma_arrivals(setting["rate"], setting["cv"], self.num_requests, setting.seed)
        steps = step_counts(*self.steps, self.num_requests, setting.seed)
        return [
            Ask(f"{setting.index}-{i}", float(offset), (i, int(count)))
            for i, (offset, count) in enumerate(zip(offsets, steps, strict=True))
        ]

    def request(self, setting: Setting, request_id: str, payload: tuple[int, int]) -> ImageRequest:
        """The request that an ask stands for."""
        index, steps = payload
        fields = self.pipeline.example(index)
        if self.image is not None:
            fields["image"] = self.image
        return ImageRequest(
            steps=steps,
            seed=index,
            schedule=self.schedule,
            slo_scale=setting["slo_scale"],
            request_id=request_id,
            **fields,
        )

    def driver(self, setting: Setting) -> DiffusionDriver:
        """A driver for one setting, idle. What steps took in other settings is not known to it."""
        return DiffusionDriver(self, setting)


class DiffusionDriver:
    """Serves one setting. Implements `neustream.driver.Driver`; times are the wall clock's.

    A payload is (number of the request, denoising steps). Finished pictures go to the bench's folder, if it has one.
    """

    def __init__(self, bench: DiffusionBench, setting: Setting) -> None:
        self.bench = bench
        self.setting = setting
        self.engine = Engine(
            bench.pipeline, bench.table, policy=bench.policy, slo_scale=setting["slo_scale"], clock=time.time
        )
        self._writer = ThreadPoolExecutor(1) if bench.save_images else None
        self._written: list[Future[None]] = []
        self._ended: list[Request] = []

    @property
    def num_unfinished(self) -> int:
        return self.engine.num_unfinished

    @property
    def wake(self) -> float | None:
        return self.engine.wake

    def submit(self, ask: Ask) -> None:
        self.engine.submit(ask._replace(payload=self.bench.request(self.setting, ask.request_id, ask.payload)))

    def step(self) -> StepRecord | None:
        """Run one step; its record also has the names that the paper's artifact uses for some of its fields."""
        record = self.engine.step()
        return None if record is None else replace(record, extra=artifact_fields(record))

    def take_ended(self) -> list[Request]:
        self._collect()
        ended, self._ended = self._ended, []
        return ended

    def abort(self, request_id: str, reason: str = "aborted") -> None:
        self.engine.abort(request_id, reason)

    def abort_all(self, reason: str = "aborted") -> None:
        self.engine.abort_all(reason)

    def close(self) -> None:
        """Withdraw what has not ended; pictures are on disk when this returns."""
        self.engine.close()
        self._collect()
        if self._writer is not None:
            self._writer.shutdown()
            for future in self._written:
                future.result()

    def _collect(self) -> None:
        """Take what has ended from the engine and hand its pictures to the writer."""
        folder = self.bench.save_images
        for request in self.engine.take_ended():
            self._ended.append(request)
            image = self.engine.result(request.request_id).image
            if image is not None and self._writer is not None and folder is not None:
                self._written.append(self._writer.submit(_save, image, folder / f"{request.request_id}.png"))


def load_bench(options: ImageOptions, table: LatencyTable, num_requests: int) -> DiffusionBench:
    """Load the pipeline and warm it up. Raises BadInput for weights that do not fit."""
    common = options.common
    assert common.dtype is not None
    try:
        set_threads(options.spec, common.device)
        dtype = getattr(torch, common.dtype)
        pipeline = load_pipeline(
            common.model, weights=options.weights, device=common.device, dtype=dtype, seed=common.seed
        )
        ModuleTimer(pipeline).warm_up()
    except ValueError as error:
        raise BadInput(str(error)) from error
    gc.collect()
    gc.freeze()  # what is loaded stays: later collections need not walk it, which takes many steps' time
    return DiffusionBench(
        pipeline,
        table,
        policy=common.policy,
        num_requests=num_requests,
        steps=options.steps,
        schedule=options.schedule,
        image=options.image,
        save_images=options.save_images,
    )


def artifact_fields(record: StepRecord) -> dict[str, Any]:
    """A step's fields under the names that the paper's artifact gave them."""
    num_passed_over = record.extra["num_passed_over"]
    return {
        **record.extra,
        "high_priority_count": record.batch_size - num_passed_over,
        "low_priority_count": num_passed_over,
        "queue_size_before_schedule": record.extra["num_queued"],
        "batch_size_after_schedule": record.batch_size,
        "running_requests_id_list": list(record.request_ids),
        "rest_time": [round(seconds, 6) for seconds in record.rest_seconds],
    }


def _save(image: Tensor, path: Path) -> None:
    to_pil(image).save(path)
