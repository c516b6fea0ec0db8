"""A request: what it asks for, by when, and all of its progress. Nothing about it lives anywhere else."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from neustream.route import Route
from neustream.slo import Deadlines

OnMiss = Literal["reject", "demote"]


class Outcome(StrEnum):
    """How a request ended. Exactly one of these, exactly once."""

    MET = "met"
    """Finished, every output unit on or before its deadline."""
    LATE = "late"
    """Finished, at least one unit after its deadline."""
    REJECTED = "rejected"
    """Given up by the policy, because it could not meet its SLO."""
    FAILED = "failed"
    """The executor could not run it."""
    ABORTED = "aborted"
    """Withdrawn by the client."""


class Request:
    """One request on its way through the modules of `route`.

    `size` counts the units of input work (prompt tokens; 1 for an image), `width` the seats it takes in a
    batch (sequences, where it samples several). All times are in seconds on the driver's clock.
    """

    __slots__ = (
        "arrival",
        "cached",
        "deadlines",
        "demoted",
        "ended_at",
        "first_unit_at",
        "in_flight",
        "is_resident",
        "last_unit_at",
        "left",
        "next_deadline",
        "num_preemptions",
        "on_miss",
        "outcome",
        "passes",
        "processed",
        "reason",
        "request_id",
        "route",
        "size",
        "slo_class",
        "stage",
        "units",
        "units_on_time",
        "width",
    )

    def __init__(
        self,
        request_id: str,
        arrival: float,
        deadlines: Deadlines,
        route: Route,
        size: int = 1,
        *,
        on_miss: OnMiss = "reject",
        width: int = 1,
        slo_class: str = "",
    ) -> None:
        if not any(stage.visits for stage in route):
            raise ValueError(f"request {request_id!r}: its route has no visit to any module")
        if size < 1:
            raise ValueError(f"request {request_id!r}: size must be at least 1, got {size}")
        self.request_id = request_id
        self.arrival = arrival
        self.deadlines = deadlines
        self.route = route
        self.size = size
        self.on_miss: OnMiss = on_miss
        self.width = width
        self.slo_class = slo_class
        self.left = [stage.visits for stage in route]
        """Visits still to make, per stage of the route."""
        self.stage = next(i for i, stage in enumerate(route) if stage.visits)
        self.processed = 0
        """Units of its input that the first stage has processed (chunked prefill)."""
        self.cached = 0
        """Units at the front of its input that a prefix cache spares."""
        self.is_resident = False
        """Whether it holds a seat and memory of the device."""
        self.in_flight = 0
        """Output units of visits that are planned and have not come out (see `move`)."""
        self.passes = 0
        """Steps of its current module that left it out."""
        self.num_preemptions = 0
        """How often its state was lost (see `preempt`)."""
        self.demoted = False
        self.units = 0
        self.units_on_time = 0
        self.next_deadline = deadlines.at(1)
        """Deadline of the next output unit that is to be planned: `units + in_flight + 1`. Policies read this one."""
        self.first_unit_at: float | None = None
        self.last_unit_at: float | None = None
        self.ended_at: float | None = None
        self.outcome: Outcome | None = None
        self.reason: str | None = None

    @property
    def module(self) -> str:
        """The module in whose stream it waits."""
        return self.route[self.stage].module

    @property
    def context(self) -> int:
        """Units that its next emitting step attends to: its input and all output units that were planned so far."""
        return self.size + self.units + self.in_flight

    @property
    def pending(self) -> int:
        """Units that the first stage has still to process; after a preemption, all that no cache spares."""
        done = self.processed if self.processed > self.cached else self.cached
        return self.size + self.units + self.in_flight - done

    @property
    def max_units(self) -> int:
        """Output units it delivers in all if nothing stops it early."""
        emitting = sum(stage.visits for stage in self.route if stage.emits)
        return emitting or 1

    def move(self) -> bool:
        """One visit is planned away: the request stands where it will stand afterwards; returns whether at its end.

        A unit that the visit will deliver is in flight until `deliver`. Raises ValueError for one that has ended.
        """
        if self.outcome is not None:
            raise ValueError(f"request {self.request_id!r} has ended ({self.outcome}) and cannot move")
        stage = self.route[self.stage]
        self.left[self.stage] -= 1
        self.is_resident = True
        if self.stage == 0:
            self.processed = self.size + self.units + self.in_flight
        if self.left[self.stage] == 0:
            self.passes = 0
        is_over = False
        while not is_over and self.left[self.stage] == 0:
            is_over = self.stage + 1 == len(self.route)
            if not is_over:
                self.stage += 1
        if stage.emits or is_over:
            self.in_flight += 1
            self.next_deadline = self.deadlines.at(self.units + self.in_flight + 1)
        return is_over

    def deliver(self, at: float) -> None:
        """Count one output unit that came out at `at`. Drivers that only watch an engine call it without `move`."""
        self.units += 1
        if at <= self.deadlines.at(self.units):
            self.units_on_time += 1
        if self.first_unit_at is None:
            self.first_unit_at = at
        self.last_unit_at = at
        if self.in_flight:
            self.in_flight -= 1
        else:
            self.next_deadline = self.deadlines.at(self.units + 1)

    def advance(self, at: float) -> bool:
        """`move` and `deliver` in one, for drivers that run one step at a time; returns whether it is at its end."""
        is_over = self.move()
        if self.in_flight:
            self.deliver(at)
        return is_over

    def process(self, work: int) -> bool:
        """A piece of the first stage, of `work` units, is planned; returns whether that completes the stage's input."""
        self.processed = max(self.processed, self.cached) + work
        self.is_resident = True
        return self.pending == 0

    def preempt(self) -> None:
        """Back to the first stage, its state lost: it must process its input and its output so far again.

        That repeated first visit delivers the next unit, so one visit of the current stage is spared. Units in
        flight are lost: they will be planned again.
        """
        if self.stage > 0:
            self.left[self.stage] += self.in_flight - 1
            self.left[0] += 1
            self.stage = 0
        else:
            self.left[0] += self.in_flight
        self.in_flight = 0
        self.next_deadline = self.deadlines.at(self.units + 1)
        self.processed = 0
        self.is_resident = False
        self.num_preemptions += 1

    def end(self, now: float, outcome: Outcome | None = None, reason: str | None = None) -> None:
        """Close it at `now`; without `outcome` it finished, and its units say whether it met its SLO."""
        if self.outcome is not None:
            raise ValueError(f"request {self.request_id!r} has ended already ({self.outcome})")
        if outcome is None:
            outcome = Outcome.MET if self.units_on_time == self.units else Outcome.LATE
        self.outcome = outcome
        self.reason = reason
        self.ended_at = now
        self.is_resident = False

    def __repr__(self) -> str:
        state = self.outcome or f"{self.module}, {self.left[self.stage]} visits left"
        return f"Request({self.request_id!r}, {state}, {self.units} units)"
