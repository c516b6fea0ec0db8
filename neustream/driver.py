"""The contract that every engine meets, and the observers that hear of its steps and ends.

A driver serves requests step by step: patched vLLM, today's vLLM, the diffusion engine, a simulated device, a Ray
replica, a workflow. docs/drivers.md shows how to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from neustream.records import StepRecord
from neustream.request import OnMiss, Request


class Ask(NamedTuple):
    """A request as it reaches a driver."""

    request_id: str
    arrival: float
    """When it was sent, in seconds on the driver's clock."""
    payload: Any
    """What the driver's engine needs: token ids, a prompt, step counts."""
    slo: Mapping[str, Any] | None = None
    """Its SLO in the outside form that `parse_slo` reads; None: the driver's default."""
    on_miss: OnMiss | None = None
    """What to do once it cannot meet its SLO; None: the driver's default."""


class Observer(Protocol):
    """Hears of every step and every end: goodput, the run folder, progress bars, metrics, traces."""

    def on_step(self, record: StepRecord) -> None:
        """A step has ended."""
        ...

    def on_end(self, request: Request) -> None:
        """A request has ended, its outcome set. Called once per request."""
        ...


class Driver(Protocol):
    """Serves requests step by step. One thread calls it; no call blocks but for the step that it runs."""

    def submit(self, ask: Ask) -> None:
        """Take a request. Raises ValueError, one line, for one that cannot be served; the others are unharmed."""
        ...

    def step(self) -> StepRecord | None:
        """Run one step; None where there was nothing to run. `wake` then says how long that may last."""
        ...

    def take_ended(self) -> list[Request]:
        """The requests that have ended since the last call, each once, their outcome set."""
        ...

    def abort(self, request_id: str, reason: str = "aborted") -> None:
        """Withdraw a request; nothing happens where no such request is live."""
        ...

    def abort_all(self, reason: str = "aborted") -> None:
        """Withdraw whatever has not ended."""
        ...

    @property
    def num_unfinished(self) -> int:
        """Requests that were submitted and have not ended."""
        ...

    @property
    def wake(self) -> float | None:
        """After a step with nothing to run: when to try again at the latest, or None: when a request arrives."""
        ...

    def close(self) -> None:
        """Withdraw whatever has not ended and free the device; `take_ended` still tells of them."""
        ...


class Progress(NamedTuple):
    """How far a live request is."""

    request_id: str
    units: int
    """Output units that have come out so far."""
    output: Any
    """What has come out since it was last told: token ids, a picture."""


@runtime_checkable
class HasResults(Protocol):
    """A driver that hands out what it has made. Optional: without it only outcomes and times are known."""

    def take_result(self, request_id: str) -> Any:
        """What a request of the last `take_ended` has made, None where nothing. Raises KeyError for any other."""
        ...


@runtime_checkable
class TellsProgress(Protocol):
    """A driver that tells of output as it comes. Optional: without it nothing is heard between begin and end."""

    def take_progress(self) -> list[Progress]:
        """The live requests whose output has grown since the last call."""
        ...


def _ignore(_: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Callbacks:
    """An observer made of functions; a missing one ignores its event."""

    on_end: Callable[[Request], None] = _ignore
    on_step: Callable[[StepRecord], None] = _ignore


class Observers:
    """Several observers as one; they hear in the order given."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_step(self, record: StepRecord) -> None:
        for observer in self._observers:
            observer.on_step(record)

    def on_end(self, request: Request) -> None:
        for observer in self._observers:
            observer.on_end(request)
