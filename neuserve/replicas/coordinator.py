"""The coordinator's actor: jobs in from clients, calls out to replicas, and what came of both. It decides nothing.

A dispatcher decides; this carries out. Its state is lost with its process. Ray then starts it anew: it opens new
sessions with its replicas, which drop what the old one had sent, and clients submit again or give up.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from typing import Any

from neuserve.replicas.dispatch import Order, Service
from neuserve.replicas.link import Link, Member
from neuserve.replicas.messages import Event, Job, RunEvent, RunReport
from neuserve.replicas.outbox import Outbox
from neustream.workflow.pool import Replica

LOOK = 0.05
"""Seconds between two looks for workflows that are hopeless by now."""
LISTEN = 10.0
"""Seconds after which a client that nothing happens to is answered all the same."""
CLIENT_GONE = 60.0
"""Seconds without a question from a client after which its jobs are withdrawn."""


class _Client:
    """A client: what it has not heard of yet, and which of its jobs have not ended."""

    def __init__(self, now: float) -> None:
        self.outbox = Outbox()
        self.live: set[str] = set()
        self.unheard: set[str] = set()
        """Its jobs that have ended, and whose report it has not said it has."""
        self.seen = now
        self.num_listening = 0

    def knows(self, run_id: str) -> bool:
        """Whether a job is live, or has ended and its report is still here."""
        return run_id in self.live or run_id in self.unheard

    async def listen(self, after: int) -> tuple[int, list[RunEvent | RunReport]] | None:
        """Its news beyond message number `after`; it has those before."""
        self.num_listening += 1
        try:
            self.outbox.forget(after)
            self.unheard = {item.run_id for item in self.outbox.items() if isinstance(item, RunReport)}
            return await self.outbox.take(after, LISTEN)
        finally:
            self.num_listening -= 1
            self.seen = time.monotonic()


class CoordinatorActor:
    """Made into an actor by the deployment; all its methods run on one event loop."""

    def __init__(self, service: Service, members: Sequence[Member]) -> None:
        self._dispatcher = service.make(dict.fromkeys(member.pool for member in members), self._tell)
        self._links = {
            member.name: Link(member, gained=self._gained, lost=self._lost, dead=self._dead, heard=self._heard)
            for member in members
        }
        self._clients: dict[str, _Client] = {}
        self._of_key: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closed = False

    async def begin(self) -> None:
        """Start to serve. Any method does so, too."""
        if self._tasks or self._is_closed:
            return
        self._go(self._look())
        for link in self._links.values():
            self._go(link.keep())

    async def attach(self, client: str, run_ids: Sequence[str]) -> list[str]:
        """A client is there. Returns those of its jobs that nobody knows here: this actor was started anew."""
        await self.begin()
        known = self._clients.setdefault(client, _Client(time.monotonic()))
        known.seen = time.monotonic()
        return [run_id for run_id in run_ids if not known.knows(run_id)]

    async def submit(self, client: str, jobs: Sequence[Job]) -> None:
        """Take jobs. One that is known already is not taken twice."""
        await self.begin()
        now = time.monotonic()
        known = self._clients.setdefault(client, _Client(now))
        for job in jobs:
            if known.knows(job.run_id):
                continue
            key = f"{client}/{job.run_id}"
            known.live.add(job.run_id)
            self._of_key[key] = client
            self._carry_out(self._dispatcher.submit(key, job, now))

    async def listen(self, client: str, after: int) -> tuple[int, list[RunEvent | RunReport]] | None:
        """What has happened to a client's jobs beyond message number `after`, as soon as anything has.

        The list is empty where nothing has for `LISTEN` seconds. None for a client that is not attached.
        """
        known = self._clients.get(client)
        return None if known is None else await known.listen(after)

    async def abort(self, client: str, run_id: str, reason: str) -> None:
        """Withdraw a job; nothing happens where it has ended."""
        self._carry_out(self._dispatcher.abort(f"{client}/{run_id}", reason, time.monotonic()))

    async def detach(self, client: str) -> None:
        """A client goes; its jobs are withdrawn."""
        known = self._clients.get(client)
        if known is None:
            return
        for run_id in sorted(known.live):
            await self.abort(client, run_id, "its client has gone")
        del self._clients[client]
        known.outbox.close()

    async def drain(self, replica: str) -> None:
        """Send no further calls to a replica. Raises ValueError for an unknown one."""
        link = self._link(replica)
        link.is_draining = True
        if link.state == "open":
            self._dispatcher.drain(link.member.pool, replica)

    async def status(self) -> dict[str, Any]:
        """How everything stands, in plain types."""
        await self.begin()
        replicas = {
            name: {
                "pool": link.member.pool,
                "state": link.state,
                "pid": None if link.info is None else link.info.pid,
                "node": None if link.info is None else link.info.node,
                "num_losses": link.num_losses,
                "reason": link.reason,
            }
            for name, link in self._links.items()
        }
        return {**self._dispatcher.status(), "pid": os.getpid(), "clients": len(self._clients), "replicas": replicas}

    async def close(self) -> None:
        """Stop: clients hear that nothing more comes."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        for client in list(self._clients):
            await self.detach(client)

    # What replicas do.

    def _gained(self, link: Link) -> None:
        member = link.member
        replica = Replica(member.name, member.credits)
        replica.is_open = not link.is_draining
        self._carry_out(self._dispatcher.gained(member.pool, replica, time.monotonic()))

    def _lost(self, link: Link) -> None:
        self._carry_out(self._dispatcher.lost(link.member.pool, link.member.name, time.monotonic()))

    def _dead(self, link: Link) -> None:
        print(f"replica {link.member.name} is gone for good: {link.reason}", file=sys.stderr, flush=True)

    def _heard(self, link: Link, events: list[Event]) -> None:
        now = time.monotonic()
        orders: list[Order] = []
        for event in events:
            orders += self._dispatcher.heard(event, now)  # type: ignore[arg-type]
        self._carry_out(orders)

    def _carry_out(self, orders: list[Order]) -> None:
        """Send each replica its messages, in their order."""
        messages = defaultdict(list)
        for order in orders:
            messages[order.replica].append(order.message)
        for replica, its in messages.items():
            self._links[replica].send(its)

    def _tell(self, key: str, news: RunEvent | RunReport) -> None:
        client = self._clients[self._of_key[key]]
        if isinstance(news, RunReport):
            client.live.discard(news.run_id)
            client.unheard.add(news.run_id)
            del self._of_key[key]
        client.outbox.put([news])

    # What time does.

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            self._carry_out(self._dispatcher.look(now))
            for pool, reason in self._dead_pools().items():
                self._carry_out(self._dispatcher.abandon(pool, reason, now))
            for name, client in list(self._clients.items()):
                if not client.num_listening and now - client.seen > CLIENT_GONE:
                    await self.detach(name)

    def _dead_pools(self) -> dict[str, str]:
        """The pools none of whose replicas will come back, each with why the last of them is gone."""
        alive = {link.member.pool for link in self._links.values() if link.state != "dead"}
        return {
            link.member.pool: f"pool {link.member.pool!r} has no replica left ({link.reason})"
            for link in self._links.values()
            if link.member.pool not in alive
        }

    def _link(self, replica: str) -> Link:
        if replica not in self._links:
            raise ValueError(f"there is no replica {replica!r}; there are {', '.join(self._links)}")
        return self._links[replica]

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task whose mistakes are not survived: Ray starts the actor anew."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_check)
        self._tasks.append(task)


def _check(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        traceback.print_exception(task.exception())
        os._exit(1)
