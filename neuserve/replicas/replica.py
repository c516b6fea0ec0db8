"""The replica's actor: a driver behind an event loop. It serves one session at a time, that of a coordinator."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from neuserve.replicas.engine_loop import EngineLoop
from neuserve.replicas.factory import Factory
from neuserve.replicas.messages import Call, Event, Withdrawal
from neuserve.replicas.outbox import Outbox
from neustream.driver import Driver

CLOSE_WAIT = 10.0
"""Seconds that a driver may take to end its step and to close."""
LAST_WORDS = 0.5
"""Seconds for which a broken replica still answers, so that its coordinator hears why."""


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """Who answers: a process, on a node of Ray's."""

    pid: int
    node: str


class ReplicaActor:
    """Made into an actor by the deployment. Its methods run on the actor's event loop, the driver in a thread.

    A driver that fails takes its process with it. Ray then starts the actor anew, as often as it may.
    """

    def __init__(self, name: str, driver: Factory) -> None:
        self.name = name
        self._session = ""
        self._outbox: Outbox | None = None
        self._loop = EngineLoop(lambda: _made(driver), self._tell)
        self._loop.start()

    async def ready(self) -> ReplicaInfo:
        """Wait until the driver is made. Raises what making it raised."""
        await asyncio.wrap_future(self._loop.ready)
        return ReplicaInfo(os.getpid(), _node())

    async def open(self, session: str) -> ReplicaInfo:
        """Begin a session: what an earlier one has left is dropped, and not told of any more."""
        info = await self.ready()
        before, self._session, self._outbox = self._outbox, session, None
        if before is not None:
            before.close()
        await asyncio.wrap_future(self._loop.reset())
        if self._session == session:
            self._outbox = Outbox()
        return info

    async def submit(self, session: str, messages: Iterable[Call | Withdrawal]) -> None:
        """Take messages; those of a session that is over are ignored."""
        if session != self._session:
            return
        for message in messages:
            if isinstance(message, Call):
                self._loop.take(message)
            else:
                self._loop.withdraw(message.call, message.reason)

    async def take(self, session: str, after: int) -> tuple[int, list[Event]] | None:
        """What has happened beyond event number `after`, as soon as anything has; None where the session is over."""
        if session != self._session or self._outbox is None:
            return None
        return await self._outbox.take(after)

    async def stats(self) -> dict[str, Any]:
        """How its engine stands."""
        return {"pid": os.getpid(), "node": _node(), **self._loop.stats()}

    async def close(self) -> None:
        """Withdraw what has not ended and close the driver; the process is left to whoever made it."""
        if self._outbox is not None:
            self._outbox.close()
        await asyncio.get_running_loop().run_in_executor(None, self._loop.close, CLOSE_WAIT)

    def _tell(self, events: list[Event]) -> None:
        if self._outbox is not None:
            self._outbox.put(events)
        if self._loop.error is not None:
            # os._exit: to Ray, that is a crash, after which it starts the actor anew; a plain exit is not.
            threading.Timer(LAST_WORDS, os._exit, (1,)).start()


def _made(driver: Factory) -> Driver:
    made = driver.make()
    missing = [name for name in ("submit", "step", "take_ended", "abort", "close") if not hasattr(made, name)]
    if missing:
        raise ValueError(f"{driver.path} made no driver: a {type(made).__name__} has no {', '.join(missing)}")
    driver_made: Driver = made
    return driver_made


def _node() -> str:
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node
