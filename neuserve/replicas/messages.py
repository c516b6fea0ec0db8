"""What crosses between clients, the coordinator and the replicas. Clocks do not cross: every time is a duration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neustream.request import OnMiss, Outcome

# From the coordinator to a replica.


@dataclass(frozen=True, slots=True)
class Call:
    """A request for a replica's driver."""

    call: str
    payload: Any
    slo: Mapping[str, Any] | None = None
    """In the outside form of `parse_slo`, counted from the call's arrival; None: the driver's default."""
    on_miss: OnMiss | None = None
    waited: float = 0.0
    """Seconds since it arrived, up to its sending."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A call is no longer wanted."""

    call: str
    reason: str


# From a replica to the coordinator.


@dataclass(frozen=True, slots=True)
class Begun:
    """A call was in a step for the first time."""

    call: str


@dataclass(frozen=True, slots=True)
class Grown:
    """A call has delivered `units` output units so far; `output` is what came out since it was last told."""

    call: str
    units: int
    output: Any


@dataclass(frozen=True, slots=True)
class Ended:
    """A call has ended. Times are seconds since it reached the replica."""

    call: str
    outcome: Outcome
    reason: str | None
    units: int = 0
    units_on_time: int = 0
    first: float | None = None
    """Until the first output unit."""
    seconds: float = 0.0
    """Until the end."""
    result: Any = None


@dataclass(frozen=True, slots=True)
class Broken:
    """The replica's engine has failed; its process ends."""

    reason: str


Event = Begun | Grown | Ended | Broken


# Between clients and the coordinator.


@dataclass(frozen=True, slots=True)
class Job:
    """A workflow, or a plain request, that a client submits."""

    run_id: str
    payload: Any
    deadline: float | None = None
    """A workflow's: seconds from now until all of it is due; None: the sum of its stages' SLOs."""
    slo: Mapping[str, Any] | None = None
    """A plain request's, in the outside form of `parse_slo`, counted from its arrival."""
    on_miss: OnMiss | None = None
    """A plain request's."""
    waited: float = 0.0
    """A plain request's: seconds since it arrived."""
    is_watched: bool = False
    """Whether its client wants to hear of its calls, not of its end alone."""


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something happened to a call of a watched run."""

    run_id: str
    kind: Literal["sent", "begun", "grown", "ended"]
    node: str
    at: float
    """Seconds since the run's arrival."""
    units: int = 0
    output: Any = None
    """`grown`: what came out since the last event; `ended`: the result."""
    label: str | None = None
    """`ended`: what the result was called; it chooses the way on."""


@dataclass(frozen=True, slots=True)
class CallReport:
    """A call of a run that has ended. Times are seconds since the run's arrival, None where it did not come so far."""

    node: str
    replica: str | None
    """The replica that had it last."""
    attempt: int
    """How often it was sent again after a replica was lost."""
    size: int
    queued: float
    sent: float | None
    first: float | None
    ended: float | None
    units: int = 0
    units_on_time: int = 0
    outcome: Outcome | None = None
    """How its replica says that it ended; None for a call that was withdrawn."""
    label: str | None = None
    result: Any = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """What became of a run: a workflow, or a plain request. Every run that was submitted gets exactly one."""

    run_id: str
    outcome: Outcome
    reason: str | None
    seconds: float
    """From its arrival to its end."""
    due: float | None = None
    """By how many seconds after its arrival it was due; None where nothing bound it."""
    calls: tuple[CallReport, ...] = ()

    @property
    def result(self) -> Any:
        """What its last call has made."""
        return self.calls[-1].result if self.calls else None
