"""Times modules by batch size on their device: what the profiler measures with, and a quick table where none is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from diffusion_plugin.executor import DiffusionExecutor, out_of_memory
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.request import ImageRequest, Job
from neustream import LatencyTable, Request, StepPlan
from neustream.capacity import MAX_BATCH
from neustream.latency import BatchLatency
from neustream.route import pipeline_route
from neustream.slo import NO_DEADLINES

QUICK_SIZES = (1, 2, 4, 8, 16, 32)
QUICK_REPEATS = 5
QUICK_SECONDS = 2.0
"""A batch size after one whose runs took longer than this is not measured."""
STEPS = 50


class ModuleTimer:
    """Runs steps of any module at any batch size, as the executor runs them, and times them."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.executor = DiffusionExecutor(pipeline)
        self.jobs: list[Job] = []

    def run(self, module: str, batch: int, repeats: int = 1) -> list[float]:
        """Seconds of `repeats` steps, each from the plan in hand to the device being done with it.

        Raises MemoryError where the batch does not fit.
        """
        while len(self.jobs) < batch:
            self._add_job()
        stage = self.pipeline.modules.index(module)
        self.executor.max_batch[module] = MAX_BATCH  # what a larger batch ran into says nothing of this one
        for job in self.jobs[:batch]:
            job.request.stage = stage
        plan = StepPlan(module, tuple(job.request for job in self.jobs[:batch]))
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            result = self.executor.run(plan)
            seconds.append(time.perf_counter() - start)
            for reason in result.failed.values():
                raise RuntimeError(reason)
            if result.deferred or self.executor.max_batch[module] < batch:
                raise MemoryError(f"{module} does not fit at batch {batch}")
        return seconds

    def _add_job(self) -> None:
        index = len(self.jobs)
        asked = ImageRequest(steps=STEPS, seed=index, **self.pipeline.example(index))
        route = pipeline_route(self.pipeline.modules, STEPS)
        job = self.executor.make_job(asked, Request(f"timed-{index}", 0.0, NO_DEADLINES, route))
        self.executor.add(job)
        self.jobs.append(job)

    def warm_up(self, sizes: Sequence[int] = (1, 2, 4, 8, 16)) -> None:
        """Run every module at these batch sizes, so that costs of first use are paid before any request."""
        for module in self.pipeline.modules:
            for size in sizes:
                try:
                    self.run(module, size)
                except MemoryError:
                    break


def quick_table(pipeline: Pipeline, sizes: Sequence[int] = QUICK_SIZES) -> LatencyTable:
    """A coarse latency table of this pipeline on this device, in a few seconds for small models.

    Module by module, medians of a few runs, by rising batch size for as long as runs are short and fit.
    """
    timer = ModuleTimer(pipeline)
    modules = {}
    for module in pipeline.modules:
        found: dict[int, float] = {}
        for size in sizes:
            try:
                warm_up = timer.run(module, size)[0]
                repeats = QUICK_REPEATS if warm_up < QUICK_SECONDS / QUICK_REPEATS else 1
                found[size] = statistics.median(timer.run(module, size, repeats))
            except Exception as error:
                if found and out_of_memory(error):
                    break
                raise
            if found[size] > QUICK_SECONDS:
                break
        modules[module] = BatchLatency(tuple(found), tuple(found.values()))
    info = {"dtype": str(pipeline.dtype).removeprefix("torch."), "source": "measured by diffusion_plugin, quick"}
    return LatencyTable(pipeline.spec.name, str(pipeline.device), modules, info)
