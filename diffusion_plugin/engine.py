"""The engine, a driver: requests in, steps of the core's loop, requests out. `engine_thread` puts it into a thread."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from diffusion_plugin.executor import DiffusionExecutor
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.request import ImageRequest, ImageResult, Job
from neustream import LatencyTable, Request, StepLoop, StepPolicy, Streams, make_policy
from neustream.capacity import MAX_BATCH
from neustream.driver import Ask, Callbacks
from neustream.history import StepHistory
from neustream.loop import Clock
from neustream.policies.seats import WithSeats
from neustream.records import StepRecord
from neustream.route import pipeline_route
from neustream.slo import parse_slo

OnStep = Callable[[StepRecord], None]


class Engine:
    """Serves one pipeline on its device under one policy. Implements `neustream.driver.Driver`.

    `policy` is a name of `neustream.POLICIES` (built for `slo_scale`) or a policy. Deadlines and plans are on
    `clock`, in seconds. `on_step` hears of each step that ran something. What steps took is learnt anew by each
    engine: measuring or warming up the pipeline before leaves no trace in it.
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
        observer = Callbacks(self._ended, self._stepped)
        self.loop = StepLoop(WithSeats(chosen), self.streams, self.executor, clock, observer, StepHistory(table))
        self.clock = clock
        self.wake: float | None = None
        """After a step with nothing to run: when to try again at the latest, or None: when a request arrives."""
        self._on_step = on_step
        self._record: StepRecord | None = None
        self._ended_jobs: dict[str, Job] = {}
        self._taken_jobs: dict[str, Job] = {}
        self._ids = itertools.count()
        self._is_closed = False

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self.streams)

    def submit(self, ask: Ask) -> None:
        """Take a request; its payload is an `ImageRequest`, whose SLO and `on_miss` hold where the ask has none.

        Raises ValueError, one line, for bad input or an id in use.
        """
        self.add(self.make_job(ask))

    def submit_image(self, asked: ImageRequest, *, arrival: float | None = None) -> str:
        """Take a request that arrives now, or at `arrival` on the engine's clock; returns its id.

        Raises ValueError, one line, for bad input or an id in use.
        """
        ask = self.ask(asked, arrival=arrival)
        self.submit(ask)
        return ask.request_id

    def ask(self, asked: ImageRequest, *, arrival: float | None = None) -> Ask:
        """The ask of a request that arrives now, or at `arrival`, with an id where it has none."""
        request_id = asked.request_id or f"image-{next(self._ids)}"
        return Ask(request_id, self.clock() if arrival is None else arrival, asked)

    def make_job(self, ask: Ask) -> Job:
        """Check a request and prepare its inputs; touches nothing shared, so any thread may.

        Raises ValueError, one line, for bad input.
        """
        asked = ask.payload
        if not isinstance(asked, ImageRequest):
            raise ValueError(f"request {ask.request_id!r}: its payload must be an ImageRequest, got {asked!r:.60}")
        route = pipeline_route(self.pipeline.modules, asked.steps)
        slo = asked.slo() if ask.slo is None else parse_slo(ask.slo)
        deadlines = slo.bind(ask.arrival, route, 1, self.table)
        request = Request(ask.request_id, ask.arrival, deadlines, route, on_miss=ask.on_miss or asked.on_miss)
        return self.executor.make_job(asked, request)

    def add(self, job: Job) -> None:
        """Take a job that `make_job` made. Raises ValueError where its id is in use, RuntimeError after `close`."""
        if self._is_closed:
            raise RuntimeError("the engine is closed")
        request_id = job.request.request_id
        if request_id in self.executor.jobs or request_id in self._ended_jobs:
            raise ValueError(f"request id {request_id!r} is in use")
        self.streams.add(job.request)
        self.executor.add(job)

    def step(self) -> StepRecord | None:
        """Run one step; None where there was nothing to run, and `wake` says how long that may last."""
        self._record = None
        self.wake = self.loop.step().wake
        return self._record

    def take_ended(self) -> list[Request]:
        """The requests that have ended since the last call; `result` has their images until the next call."""
        self._taken_jobs, self._ended_jobs = self._ended_jobs, {}
        return [job.request for job in self._taken_jobs.values()]

    def result(self, request_id: str) -> ImageResult:
        """What the user gets of a request of the last `take_ended`. Raises KeyError for any other."""
        return result_of(self._taken_jobs[request_id])

    def take_result(self, request_id: str) -> ImageResult:
        """The same, as `neustream.driver.HasResults` names it."""
        return self.result(request_id)

    def abort(self, request_id: str, reason: str = "aborted") -> None:
        """Withdraw a request between two steps and free its tensors; nothing happens where it is not live."""
        self.loop.abort(request_id, reason)

    def abort_all(self, reason: str = "aborted") -> None:
        """Withdraw whatever has not ended."""
        for request in list(self.streams):
            self.loop.abort(request.request_id, reason)

    def close(self) -> None:
        """Withdraw whatever has not ended and free the device; the pipeline stays loaded, for its owner."""
        self.abort_all("the engine was closed")
        self._is_closed = True
        self.executor.close()

    def check_integrity(self) -> None:
        """Assert that streams, jobs and slots agree. Between steps."""
        self.streams.check_integrity()
        self.executor.check_integrity()
        assert {request.request_id for request in self.streams} == set(self.executor.jobs)

    def _ended(self, request: Request) -> None:
        self._ended_jobs[request.request_id] = self.executor.release(request)

    def _stepped(self, record: StepRecord) -> None:
        self._record = record
        if self._on_step is not None:
            self._on_step(record)


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
