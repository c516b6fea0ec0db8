"""Brings the diffusion engine to the common runner: the requests of a setting, and a server for it."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from diffusion_plugin.engine import Engine
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.request import ImageRequest, Job, to_pil
from exp.harness.client import Job as Message
from exp.harness.runner import OnStep
from exp.harness.settings import Setting
from neustream import LatencyTable, Request, make_policy
from neustream.records import StepRecord
from neustream.workload import gamma_arrivals, step_counts

IDLE = 0.0005
"""Seconds that a server with nothing to run waits before it looks at the arrivals again."""


class DiffusionBench:
    """Implements `exp.harness.Bench` on one loaded pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        table: LatencyTable,
        *,
        policy: str,
        num_requests: int,
        steps: tuple[int, int],
        schedule: str | None = None,
        image: Path | None = None,
        save_images: Path | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.table = table
        self.policy = policy
        self.num_requests = num_requests
        self.steps = steps
        self.schedule = schedule
        self.image = image
        self.save_images = save_images

    def jobs(self, setting: Setting) -> list[Message]:
        """The setting's requests: arrivals by rate, cv and seed, step counts by seed; the same for every policy."""
        offsets = gamma_arrivals(setting["rate"], setting["cv"], self.num_requests, setting.seed)
        steps = step_counts(*self.steps, self.num_requests, setting.seed)
        return [
            Message(f"{setting.index}-{i}", float(offset), (i, int(count)))
            for i, (offset, count) in enumerate(zip(offsets, steps, strict=True))
        ]

    def request(self, setting: Setting, request_id: str, payload: tuple[int, int]) -> ImageRequest:
        """The request that a message stands for."""
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

    def server(self, setting: Setting, on_step: OnStep) -> DiffusionServer:
        return DiffusionServer(self, setting, on_step)


class DiffusionServer:
    """Serves one setting. Implements `exp.harness.Server`; times are the wall clock's."""

    def __init__(self, bench: DiffusionBench, setting: Setting, on_step: OnStep) -> None:
        self.bench = bench
        self.setting = setting
        self.on_step = on_step
        policy = make_policy(bench.policy, bench.table, slo_scale=setting["slo_scale"])
        self.engine = Engine(bench.pipeline, bench.table, policy=policy, clock=time.time, on_step=self._record)
        self._writer = ThreadPoolExecutor(1) if bench.save_images else None
        self._written: list[Future[None]] = []

    @property
    def num_unfinished(self) -> int:
        return self.engine.num_unfinished

    def submit(self, request_id: str, arrival: float, payload: tuple[int, int]) -> None:
        self.engine.submit(self.bench.request(self.setting, request_id, payload), arrival=arrival)

    def step(self) -> list[Request]:
        plan, ended = self.engine.step()
        if plan.module is None and not ended:
            time.sleep(IDLE)
        return self._requests(ended)

    def abort_all(self) -> list[Request]:
        """Withdraw what has not ended; also the end of the setting: pictures are on disk when this returns."""
        ended = self._requests(self.engine.abort_all("the run ended before it did"))
        if self._writer is not None:
            self._writer.shutdown()
            for future in self._written:
                future.result()
        return ended

    def _requests(self, ended: list[Job]) -> list[Request]:
        folder = self.bench.save_images
        for job in ended:
            if job.image is not None and self._writer is not None and folder is not None:
                path = folder / f"{job.request.request_id}.png"
                self._written.append(self._writer.submit(_save, job, path))
        return [job.request for job in ended]

    def _record(self, record: StepRecord) -> None:
        """The step's line: the common fields, and the names that the paper's artifact uses for some of them."""
        num_passed_over = record.extra["num_passed_over"]
        self.on_step(
            {
                **record.to_json(),
                "high_priority_count": record.batch_size - num_passed_over,
                "low_priority_count": num_passed_over,
                "queue_size_before_schedule": record.extra["num_queued"],
                "batch_size_after_schedule": record.batch_size,
                "running_requests_id_list": list(record.request_ids),
                "rest_time": [round(seconds, 6) for seconds in record.rest_seconds],
            }
        )


def _save(job: Job, path: Path) -> None:
    assert job.image is not None
    to_pil(job.image).save(path)
