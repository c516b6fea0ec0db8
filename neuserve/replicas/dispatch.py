"""What a coordinator's actor asks about every job and every event: who is to be sent what. Pure; Ray is elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from neuserve.replicas.messages import Begun, Call, Ended, Grown, Job, RunEvent, RunReport, Withdrawal
from neustream.workflow.pool import Replica

Tell = Callable[[str, RunEvent | RunReport], None]
"""Takes a run's key and what its client is to hear."""


class Order(NamedTuple):
    """A message to a replica."""

    pool: str
    replica: str
    message: Call | Withdrawal


class Dispatcher(Protocol):
    """Decides; told of everything that happens, on one clock. A run's key names it among those of all clients.

    Each job that was submitted is told one `RunReport`, with its outcome.
    """

    def submit(self, key: str, job: Job, now: float) -> list[Order]:
        """A job has come. Its key is not in use."""
        ...

    def heard(self, event: Begun | Grown | Ended, now: float) -> list[Order]:
        """A replica tells of a call. A call that is no longer wanted is counted, and nothing else happens."""
        ...

    def lost(self, pool: str, replica: str, now: float) -> list[Order]:
        """A replica is gone, with the calls that it had."""
        ...

    def gained(self, pool: str, replica: Replica, now: float) -> list[Order]:
        """A replica has come."""
        ...

    def drain(self, pool: str, replica: str) -> None:
        """Send no further calls to a replica."""
        ...

    def abandon(self, pool: str, reason: str, now: float) -> list[Order]:
        """No replica of a pool will come any more: fail whatever waits in front of it."""
        ...

    def look(self, now: float) -> list[Order]:
        """Time has passed: give up what is hopeless by now."""
        ...

    def abort(self, key: str, reason: str, now: float) -> list[Order]:
        """A client withdraws a job; nothing happens where no such job is live."""
        ...

    def status(self) -> dict[str, Any]:
        """How it stands, in plain types: `num_live`, `num_stale`, `pools`."""
        ...


class Service(Protocol):
    """What a deployment serves; the coordinator's actor makes the dispatcher of it."""

    def check(self, pools: Iterable[str]) -> None:
        """Raises ValueError, one line, where these pools cannot serve it."""
        ...

    def make(self, pools: Iterable[str], tell: Tell) -> Dispatcher:
        """The dispatcher over these pools, which are empty yet."""
        ...


def pool_status(waiting: int, replicas: Iterable[Replica]) -> dict[str, Any]:
    """A pool in plain types."""
    members = {
        replica.name: {"waiting": len(replica.waiting), "running": len(replica.running), "is_open": replica.is_open}
        for replica in replicas
    }
    return {"queue": waiting, "replicas": members}
