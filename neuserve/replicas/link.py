"""The coordinator's side of one replica: opens a session, listens, sends, notices that it has died or come back."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from neuserve.replicas.errors import first_line
from neuserve.replicas.messages import Broken, Call, Event, Withdrawal

RETRY = (0.05, 1.0)
"""Seconds until a replica that does not answer is asked again: the first time, and at most."""

State = Literal["starting", "open", "lost", "dead"]


@dataclass(frozen=True, slots=True)
class Member:
    """A replica as the coordinator is told of it."""

    name: str
    pool: str
    credits: int
    actor: Any


class Link:
    """Keeps a session with a replica for as long as it lives. `gained`, `lost`, `dead` and `heard` are told of it.

    The session is one outstanding question: what is new? Ray answers it with an error once the replica's process, or
    its node, is gone. So nothing is asked in vain, and a death is noticed when Ray notices it.
    """

    def __init__(
        self,
        member: Member,
        *,
        gained: Callable[[Link], None],
        lost: Callable[[Link], None],
        dead: Callable[[Link], None],
        heard: Callable[[Link, list[Event]], None],
    ) -> None:
        self.member = member
        self.state: State = "starting"
        self.is_draining = False
        """Whether it is to get no further calls, also once it has come back."""
        self.num_losses = 0
        self.info: Any = None
        self.reason: str | None = None
        """Why it was lost last."""
        self._gained, self._lost, self._dead, self._heard = gained, lost, dead, heard
        self._session = ""

    async def keep(self) -> None:
        """Serve until the replica is gone for good."""
        wait = RETRY[0]
        while True:
            try:
                await self._serve()
            except (ActorDiedError, RayTaskError) as error:  # a RayTaskError: its driver cannot be made
                self._close(_why(error), is_final=True)
                return
            except RayError as error:
                self._close(_why(error))
            wait = RETRY[0] if self.info is not None else min(2 * wait, RETRY[1])
            self.info = None
            await asyncio.sleep(wait)

    def send(self, messages: Iterable[Call | Withdrawal]) -> None:
        """Send messages; they get lost with the replica, as the calls that it had."""
        self.member.actor.submit.remote(self._session, list(messages))

    async def _serve(self) -> None:
        """One session, from its beginning until the replica is gone."""
        actor, self._session = self.member.actor, uuid.uuid4().hex
        self.info = await actor.open.remote(self._session)
        self.state = "open"
        self._gained(self)
        after = 0
        while True:
            answer = await actor.take.remote(self._session, after)
            if answer is None:
                self._close("its session was closed")
                return
            after, events = answer
            told = [event for event in events if not isinstance(event, Broken)]
            if told:
                self._heard(self, told)
            if len(told) < len(events):
                self._close(next(event.reason for event in events if isinstance(event, Broken)))
                return

    def _close(self, reason: str, *, is_final: bool = False) -> None:
        was_open = self.state == "open"
        self.state = "dead" if is_final else "lost"
        if was_open or self.reason is None:
            self.reason = reason
        if was_open:
            self.num_losses += 1
            self._lost(self)
        if is_final:
            self._dead(self)


def _why(error: Exception) -> str:
    """A line on why a replica does not answer; Ray's own text has many."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {first_line(cause)}".removesuffix(": ")


def stop(actor: Any) -> None:
    """End an actor's process for good."""
    ray.kill(actor, no_restart=True)
