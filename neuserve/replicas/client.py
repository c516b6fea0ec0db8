"""A client of a deployment: submits jobs from any thread or event loop, and hears of each of them exactly once."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

import ray
from ray.exceptions import ActorDiedError, RayError

from neuserve.replicas.messages import Job, RunEvent, RunReport
from neustream.request import OnMiss, Outcome

RETRY_SECONDS = 0.1
"""Seconds until a coordinator that does not answer is asked again."""
CHECK_SECONDS = 10.0
"""Seconds between two comparisons of the open jobs with those that the coordinator knows."""

OnRestart = Literal["resubmit", "fail"]


class Ticket:
    """A job that was submitted. From any thread."""

    def __init__(self, job: Job, abort: Callable[[str, str], None]) -> None:
        self.job = job
        self.submitted = time.monotonic()
        self._abort = abort
        self._report: RunReport | None = None
        self._events: list[RunEvent] = []
        self._news = threading.Condition()
        self._wakers: list[Callable[[], None]] = []

    @property
    def run_id(self) -> str:
        return self.job.run_id

    @property
    def is_done(self) -> bool:
        return self._report is not None

    def result(self, timeout: float | None = None) -> RunReport:
        """What became of it, once it has ended. Raises TimeoutError after `timeout` seconds."""
        with self._news:
            if not self._news.wait_for(lambda: self.is_done, timeout):
                raise TimeoutError(f"{self.run_id!r} has not ended within {timeout} s")
        assert self._report is not None
        return self._report

    def abort(self, reason: str = "aborted") -> None:
        """Withdraw it; its report says so, unless it has ended before."""
        self._abort(self.run_id, reason)

    def __iter__(self) -> Iterator[RunEvent]:
        """What happens to its calls, until it has ended. Empty unless it was submitted with `watch`."""
        for i in itertools.count():
            with self._news:
                self._news.wait_for(lambda i=i: len(self._events) > i or self.is_done)  # type: ignore[misc]
                if len(self._events) <= i:
                    return
            yield self._events[i]

    async def __aiter__(self) -> AsyncIterator[RunEvent]:
        """The same on an event loop."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(news.set)

        with self._news:
            self._wakers.append(wake)
        try:
            i = 0
            while True:
                news.clear()
                while i < len(self._events):
                    yield self._events[i]
                    i += 1
                if self.is_done and i == len(self._events):
                    return
                await news.wait()
        finally:
            with self._news:
                self._wakers.remove(wake)

    async def wait(self) -> RunReport:
        """`result` on an event loop."""
        async for _ in self:
            pass
        return self.result()

    def hear(self, news: RunEvent | RunReport) -> None:
        """For the client: something has happened."""
        with self._news:
            if isinstance(news, RunReport):
                self._report = news
            else:
                self._events.append(news)
            self._news.notify_all()
            wakers = list(self._wakers)
        for wake in wakers:
            wake()


class Client:
    """Talks to a deployment's coordinator; a thread listens to it. Context manager; leaving it withdraws what is open.

    When the coordinator is started anew its state is lost. `on_restart` says what then becomes of the open jobs: they
    are submitted again with the time that is left to them (their calls run again from the first node), or they fail.
    `on_end` hears each report, on the listening thread.
    """

    def __init__(
        self,
        coordinator: Any,
        *,
        name: str | None = None,
        on_restart: OnRestart = "resubmit",
        on_end: Callable[[RunReport], None] | None = None,
    ) -> None:
        self.name = name or f"client-{uuid.uuid4().hex[:8]}"
        self._coordinator = coordinator
        self._on_restart = on_restart
        self._on_end = on_end
        self._open: dict[str, Ticket] = {}
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._fault: str | None = None
        self._is_closed = False
        ray.get(coordinator.attach.remote(self.name, []))
        self._thread = threading.Thread(target=self._listen, name="neustream-client", daemon=True)
        self._thread.start()

    def submit(
        self,
        payload: Any,
        *,
        run_id: str | None = None,
        deadline: float | None = None,
        slo: Mapping[str, Any] | None = None,
        on_miss: OnMiss | None = None,
        waited: float = 0.0,
        watch: bool = False,
    ) -> Ticket:
        """Submit a job; returns at once.

        `deadline` is for workflows: seconds from now until all of it is due, None for the sum of its stages' SLOs.
        `slo`, `on_miss` and `waited` (seconds since it arrived) are for plain requests. With `watch` the ticket tells
        of every call and its output as it comes. Raises ValueError for an id that is open and a deadline that is not
        above 0, RuntimeError after `close` and once the coordinator is gone for good.
        """
        if deadline is not None and not deadline > 0:
            raise ValueError(f"the deadline must be above 0 seconds from now, got {deadline!r}")
        job = Job(run_id or f"run-{next(self._ids)}", payload, deadline, slo, on_miss, waited, watch)
        ticket = Ticket(job, self._abort)
        with self._lock:
            if self._is_closed or self._fault is not None:
                raise RuntimeError(self._fault or "the client is closed")
            if job.run_id in self._open:
                raise ValueError(f"run id {job.run_id!r} is in use")
            self._open[job.run_id] = ticket
            self._coordinator.submit.remote(self.name, [job])
        return ticket

    @property
    def num_open(self) -> int:
        """Jobs that were submitted and have not ended."""
        return len(self._open)

    def status(self) -> dict[str, Any]:
        """How the deployment stands. Raises RayError where the coordinator does not answer just now."""
        status: dict[str, Any] = ray.get(self._coordinator.status.remote())
        return status

    def drain(self, replica: str) -> None:
        """Send no further calls to a replica; those that it has go on. Raises ValueError for an unknown one."""
        ray.get(self._coordinator.drain.remote(replica))

    def close(self) -> None:
        """Withdraw what is open, and stop listening."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        if self._fault is None:
            self._coordinator.detach.remote(self.name)
        self._thread.join()

    def _abort(self, run_id: str, reason: str) -> None:
        self._coordinator.abort.remote(self.name, run_id, reason)

    # The listening thread.

    def _listen(self) -> None:
        after, checked = 0, time.monotonic()
        while True:
            try:
                answer = ray.get(self._coordinator.listen.remote(self.name, after))
                if answer is None:  # detached, or another coordinator than before
                    if self._is_closed:
                        break
                    after = 0
                    self._attach()
                    continue
                after, news = answer
                for item in news:
                    self._hear(item)
                if time.monotonic() - checked > CHECK_SECONDS:
                    checked = time.monotonic()
                    self._attach()
            except ActorDiedError:
                self._fault = "the coordinator is gone"
                break
            except RayError:
                after = 0
                time.sleep(RETRY_SECONDS)
        self._give_up(self._fault or "its client was closed")

    def _attach(self) -> None:
        """Tell the coordinator which jobs are open here; submit those again that it does not know, or fail them.

        The lock keeps the order: a job that is submitted later reaches the coordinator later.
        """
        with self._lock:
            tickets = dict(self._open)
            question = self._coordinator.attach.remote(self.name, list(tickets))
        for run_id in ray.get(question):
            if self._on_restart == "fail":
                ticket = tickets[run_id]
                seconds = time.monotonic() - ticket.submitted
                reason = "the coordinator was started anew and knows nothing of it"
                self._hear(RunReport(run_id, Outcome.FAILED, reason, seconds))
            else:
                self._coordinator.submit.remote(self.name, [_again(tickets[run_id])])

    def _hear(self, news: RunEvent | RunReport) -> None:
        is_end = isinstance(news, RunReport)
        with self._lock:
            ticket = self._open.pop(news.run_id, None) if is_end else self._open.get(news.run_id)
        if ticket is None:
            return
        ticket.hear(news)
        if isinstance(news, RunReport) and self._on_end is not None:
            self._on_end(news)

    def _give_up(self, reason: str) -> None:
        with self._lock:
            tickets = list(self._open.values())
        outcome = Outcome.ABORTED if self._fault is None else Outcome.FAILED
        for ticket in tickets:
            self._hear(RunReport(ticket.run_id, outcome, reason, time.monotonic() - ticket.submitted))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _again(ticket: Ticket) -> Job:
    """The job with the time that is left to it. A deadline that has passed stays: the job is then answered as late."""
    job, gone = ticket.job, time.monotonic() - ticket.submitted
    deadline = None if job.deadline is None else max(job.deadline - gone, 0.0)
    return replace(job, deadline=deadline, waited=job.waited + gone)
