"""An engine in a thread of its own: submit from anywhere, get a handle, and the image when it is there."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from diffusion_plugin.engine import Engine, OnStep, result_of
from diffusion_plugin.measure import quick_table
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.request import ImageRequest, ImageResult
from neustream import LatencyTable, StepPolicy

IDLE_WAIT = 1.0
"""Seconds after which an idle loop looks around, with no message and no wake-up due."""


class Handle:
    """A submitted request."""

    def __init__(self, request_id: str, future: Future[ImageResult], abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._future = future
        self._abort = abort

    @property
    def is_done(self) -> bool:
        return self._future.done()

    def result(self, timeout: float | None = None) -> ImageResult:
        """What became of it, once it has ended. Raises TimeoutError after `timeout` seconds, and RuntimeError
        where the server itself failed."""
        return self._future.result(timeout)

    def abort(self) -> None:
        """Withdraw it; its tensors are freed at the next step boundary. Nothing happens where it has ended."""
        self._abort(self.request_id)


class EngineThread:
    """Runs an `Engine` in a thread. Context manager; leaving it serves what was submitted, then stops.

    Without `table` a quick one is measured first.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        policy: str | StepPolicy = "neustream",
        table: LatencyTable | None = None,
        slo_scale: float = 3.0,
        on_step: OnStep | None = None,
    ) -> None:
        self.engine = Engine(
            pipeline, table or quick_table(pipeline), policy=policy, slo_scale=slo_scale, on_step=on_step
        )
        self._mailbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._futures: dict[str, Future[ImageResult]] = {}
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._is_closed = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._serve, name="neustream-diffusion", daemon=True)
        self._thread.start()

    def submit(self, request: ImageRequest, *, arrival: float | None = None) -> Handle:
        """Take a request; its clock starts now, or at `arrival` (time.monotonic()).

        Raises ValueError, one line, for bad input, and RuntimeError on a server that has stopped.
        """
        job = self.engine.make_job(self.engine.ask(request, arrival=arrival))
        request_id = job.request.request_id
        future: Future[ImageResult] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the server has stopped") from self._error
            if request_id in self._futures:
                raise ValueError(f"request id {request_id!r} is in use")
            self._futures[request_id] = future
            self._mailbox.put(lambda: self.engine.add(job))
        return Handle(request_id, future, self.abort)

    def abort(self, request_id: str) -> None:
        """Withdraw a request at the next step boundary."""
        self._mailbox.put(lambda: self.engine.abort(request_id))

    def close(self) -> None:
        """Serve what was submitted, then stop. Raises RuntimeError where the server failed."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._mailbox.put(None)
        self._thread.join()
        if self._error is not None:
            raise RuntimeError(f"the server failed: {self._error}") from self._error

    def _serve(self) -> None:
        try:
            while not (self._is_stopping and self.engine.num_unfinished == 0):
                self._read_mail(block=0.0 if self.engine.num_unfinished else IDLE_WAIT)
                record = self.engine.step() if self.engine.num_unfinished else None
                if not self._deliver() and record is None and self.engine.num_unfinished:
                    self._read_mail(block=idle_seconds(self.engine))
            self._deliver()
            self.engine.close()
        except BaseException as error:
            self._fail(error)

    def _read_mail(self, block: float) -> None:
        """Carry out what other threads have asked for; waits up to `block` seconds for the first of it."""
        deadline = time.monotonic() + block
        while True:
            try:
                left = deadline - time.monotonic()
                message = self._mailbox.get(timeout=left) if left > 0 else self._mailbox.get_nowait()
            except queue.Empty:
                return
            deadline = 0.0
            if message is None:
                self._is_stopping = True
            else:
                message()

    def _deliver(self) -> int:
        """Hand out what has ended; returns how many requests that were."""
        ended = self.engine.take_ended()
        for request in ended:
            with self._lock:
                future = self._futures.pop(request.request_id)
            future.set_result(self.engine.result(request.request_id))
        return len(ended)

    def _fail(self, error: BaseException) -> None:
        """The loop itself broke: nobody waits for ever."""
        with self._lock:
            self._error = error
            self._is_closed = True
            futures = list(self._futures.values())
            self._futures.clear()
        for future in futures:
            future.set_exception(RuntimeError(f"the server failed: {type(error).__name__}: {error}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(
    pipeline: Pipeline,
    requests: Iterable[ImageRequest],
    *,
    policy: str | StepPolicy = "neustream",
    table: LatencyTable | None = None,
    slo_scale: float = 3.0,
) -> list[ImageResult]:
    """Serve these requests, all of which arrive now; returns their results in the same order.

    Raises ValueError, one line, for the first bad one, before any is run.
    """
    engine = Engine(pipeline, table or quick_table(pipeline), policy=policy, slo_scale=slo_scale)
    now = engine.clock()
    jobs = [engine.make_job(engine.ask(request, arrival=now)) for request in requests]
    for job in jobs:
        engine.add(job)
    while engine.num_unfinished:
        record = engine.step()
        if not engine.take_ended() and record is None:
            time.sleep(idle_seconds(engine))
    engine.close()
    return [result_of(job) for job in jobs]


def idle_seconds(engine: Engine) -> float:
    """How long an engine that had nothing to run may be left alone."""
    until = IDLE_WAIT if engine.wake is None else engine.wake - engine.clock()
    return min(max(until, 0.0), IDLE_WAIT)


Server = EngineThread
"""The name that programs use."""
