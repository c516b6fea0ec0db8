"""The engine: requests in, steps of the core's loop, requests out. One thread; `server` puts it into its own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from diffusion_plugin.executor import DiffusionExecutor
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.request import ImageRequest, ImageResult, Job
from neustream import LatencyTable, Request, StepLoop, StepPlan, StepPolicy, Streams, make_policy
from neustream.driver import Callbacks
from neustream.history import StepHistory
from neustream.loop import Clock
from neustream.policies.base import MAX_BATCH
from neustream.records import StepRecord
from neustream.route import pipeline_route

OnStep = Callable[[StepRecord], None]


class Engine:
    """Serves one pipeline on its device under one policy.

    `policy` is a name of `neustream.POLICIES` (built for `slo_scale`) or a policy. Deadlines and plans are on
    `clock`, in seconds. `on_step` hears of each step that ran something.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        table: LatencyTable,
        *,
        policy: str | StepPolicy = "neustream",
        slo_scale: float = 3.0,
        clock: Clock = time.monotonic,
        on_step: OnStep | None = None,
        max_batch: int = MAX_BATCH,
    ) -> None:
        missing = [module for module in pipeline.modules if module not in table]
        if missing:
            raise ValueError(f"the table of {table.model} on {table.device} lacks {', '.join(missing)}")
        self.pipeline = pipeline
        self.table = table
        self.executor = DiffusionExecutor(pipeline, max_batch=max_batch)
        chosen = make_policy(policy, table, slo_scale=slo_scale) if isinstance(policy, str) else policy
        self.streams = Streams(pipeline.modules)
        observer = Callbacks(self._ended, on_step) if on_step is not None else Callbacks(self._ended)
        self.loop = StepLoop(chosen, self.streams, self.executor, clock, observer, StepHistory(table))
        self.clock = clock
        self._ended_jobs: list[Job] = []
        self._ids = itertools.count()

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self.streams)

    def make_job(self, asked: ImageRequest, *, arrival: float | None = None) -> Job:
        """Check a request and prepare its inputs; touches nothing shared, so any thread may.

        `arrival`, on the engine's clock, defaults to now. Raises ValueError, one line, for bad input.
        """
        moment = self.clock() if arrival is None else arrival
        route = pipeline_route(self.pipeline.modules, asked.steps)
        request_id = asked.request_id or f"image-{next(self._ids)}"
        deadlines = asked.slo().bind(moment, route, 1, self.table)
        request = Request(request_id, moment, deadlines, route, on_miss=asked.on_miss)
        return self.executor.state.job(asked, request)

    def submit(self, asked: ImageRequest, *, arrival: float | None = None) -> Job:
        """Take a request. Raises ValueError, one line, for bad input or an id in use."""
        job = self.make_job(asked, arrival=arrival)
        self.add(job)
        return job

    def add(self, job: Job) -> None:
        """Take a job that `make_job` made. Raises ValueError where its id is in use."""
        if job.request.request_id in self.executor.jobs:
            raise ValueError(f"request id {job.request.request_id!r} is in use")
        self.streams.add(job.request)
        self.executor.add(job)

    def step(self) -> tuple[StepPlan, list[Job]]:
        """Run one step; returns its plan and the jobs that ended with it. Never blocks on having nothing to run."""
        plan = self.loop.step()
        return plan, self._take_ended()

    def abort(self, request_id: str, reason: str = "aborted") -> list[Job]:
        """Withdraw a request between two steps and free its tensors; returns it, if it was live."""
        self.loop.abort(request_id, reason)
        return self._take_ended()

    def abort_all(self, reason: str = "aborted") -> list[Job]:
        """Withdraw whatever has not ended."""
        for request in list(self.streams):
            self.loop.abort(request.request_id, reason)
        return self._take_ended()

    def check_integrity(self) -> None:
        """Assert that streams, jobs and slots agree. Between steps."""
        self.streams.check_integrity()
        self.executor.check_integrity()
        assert {request.request_id for request in self.streams} == set(self.executor.jobs)

    def _ended(self, request: Request) -> None:
        self._ended_jobs.append(self.executor.release(request))

    def _take_ended(self) -> list[Job]:
        ended, self._ended_jobs = self._ended_jobs, []
        return ended


def result_of(job: Job) -> ImageResult:
    """What the user gets of a job that has ended."""
    request = job.request
    assert request.outcome is not None, request
    assert request.ended_at is not None, request
    return ImageResult(
        request_id=request.request_id,
        outcome=request.outcome,
        reason=request.reason,
        image=job.image,
        is_flagged=job.is_flagged,
        steps=job.asked.steps,
        arrival=request.arrival,
        deadline=request.deadlines.at(1),
        ended_at=request.ended_at,
    )
