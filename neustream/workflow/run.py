"""One workflow under way: where it stands, which calls it has made, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from neustream.request import Outcome
from neustream.workflow.graph import Edge, Node, Workflow


@dataclass(slots=True)
class Visit:
    """One call of one node, from queueing to end. Times are in seconds on the coordinator's clock."""

    node: Node
    size: int
    """Units of input."""
    queued_at: float
    attempt: int = 0
    """How often it was sent again after a replica was lost."""
    sent_at: float | None = None
    first_unit_at: float | None = None
    ended_at: float | None = None
    units: int = 0
    """Output units delivered so far."""
    granted_until: float = 0.0
    """When the stages up to this one were due by their own SLOs: the sum that `carry` hands on. Set when it ends."""


@dataclass(slots=True)
class Run:
    """One workflow under way.

    `deadline` is the point in time that the user stated, or None: then the deadline is the sum of the stages' own SLOs
    (the artifact's rule), which is known only as the stages finish.
    """

    run_id: str
    workflow: Workflow
    arrival: float
    deadline: float | None = None
    payload: Any = None
    node: Node | None = None
    """The node whose call is under way; None before the first and after the last."""
    visits: list[Visit] = field(default_factory=list)
    taken: dict[Edge, int] = field(default_factory=dict)
    granted_until: float = 0.0
    """The sum of the finished stages' own SLOs, from the arrival: what `carry` binds the next stage to."""
    outcome: Outcome | None = None
    reason: str | None = None
    ended_at: float | None = None

    def __post_init__(self) -> None:
        self.granted_until = self.arrival

    @property
    def visit(self) -> Visit:
        """The call under way. Raises IndexError where none was made yet."""
        return self.visits[-1]

    @property
    def due(self) -> float:
        """The deadline that the run is judged by once it has finished."""
        return self.granted_until if self.deadline is None else self.deadline

    def enter(self, node: Node, size: int, now: float) -> Visit:
        """Begin a visit of `node` with `size` units of input."""
        self.node = node
        self.visits.append(Visit(node, size, now))
        return self.visits[-1]

    def leave(self, label: str, granted_until: float, now: float) -> Edge | None:
        """The call under way has ended with `label`; returns the edge that this takes, None where the workflow ends."""
        assert self.node is not None
        self.visit.ended_at = now
        self.visit.granted_until = self.granted_until = granted_until
        edge = self.workflow.follow(self.node.name, label, self.taken)
        self.node = None
        if edge is not None:
            self.taken[edge] = self.taken.get(edge, 0) + 1
        return edge

    def end(self, now: float, outcome: Outcome | None = None, reason: str | None = None) -> None:
        """Close it; without `outcome` it has finished, and its deadline says whether in time. Once only."""
        if self.outcome is not None:
            raise ValueError(f"workflow {self.run_id!r} has ended already ({self.outcome})")
        if outcome is None:
            outcome = Outcome.MET if now <= self.due else Outcome.LATE
        self.outcome, self.reason, self.ended_at = outcome, reason, now
