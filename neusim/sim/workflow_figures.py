"""Figures of a simulated run of workflows; docs/workflows.md says what each of them means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neustream.goodput import Reservoir
from neustream.request import Outcome
from neustream.workflow.run import Run

WARM_UP = 30.0
"""Seconds from a node's first call on that its rates leave out, as the artifact does."""


@dataclass(slots=True)
class NodeCount:
    """The calls of one node: when their units came out, and whether in time by the stages' own SLOs."""

    first_arrival: float | None = None
    tokens: list[tuple[float, bool]] = field(default_factory=list)
    prefills: list[tuple[float, bool]] = field(default_factory=list)
    """The first tokens of all calls."""
    ends: list[tuple[float, bool]] = field(default_factory=list)
    """The last tokens of the calls that were completed."""

    def add(self, times: Sequence[float], on_time: Sequence[bool], is_complete: bool) -> None:
        """A call is over whose units came out at `times`."""
        moments = list(zip(times, on_time, strict=True))
        self.tokens += moments
        self.prefills += moments[:1]
        if is_complete:
            self.ends += moments[-1:]

    def rates(self, window: float) -> dict[str, float]:
        """Tokens, first tokens ("p") and last tokens ("d") on time per second of `window` seconds after the warm-up."""
        start = (self.first_arrival or 0.0) + WARM_UP

        def rate(moments: list[tuple[float, bool]]) -> float:
            if self.first_arrival is None or window <= 0:
                return 0.0
            return sum(on_time for at, on_time in moments if start <= at <= start + window) / window

        return {"token_goodput": rate(self.tokens), "p": rate(self.prefills), "d": rate(self.ends)}


@dataclass(frozen=True, slots=True)
class WorkflowResult:
    """What came of a simulated run of workflows."""

    summary: dict[str, Any]
    runs: tuple[Run, ...] = field(repr=False)
    num_stale: int = 0

    @property
    def good(self) -> int:
        """Workflows that were done by their deadline."""
        return int(self.summary["good"])


def summarise(
    runs: Sequence[Run],
    nodes: Mapping[str, NodeCount],
    busy: Mapping[str, float],
    replicas: Mapping[str, int],
    spent: Mapping[str, float],
    window: float,
) -> dict[str, Any]:
    """The figures of a run that is over.

    `busy` has the seconds of all steps by pool, `replicas` the size of each pool; `spent` has, by workflow, its share
    of these seconds (a step's seconds are divided evenly among its members). `window` is that of the workload.
    """
    arrivals = [run.arrival for run in runs]
    seconds = max((run.ended_at or 0.0 for run in runs), default=0.0) - min(arrivals, default=0.0)
    good = [run for run in runs if run.outcome is Outcome.MET]
    e2el = Reservoir()
    for run in runs:
        if run.outcome in (Outcome.MET, Outcome.LATE) and run.ended_at is not None:
            e2el.add(run.ended_at - run.arrival)
    total = sum(spent.values())
    useful = sum(spent.get(run.run_id, 0.0) for run in good)
    return {
        "requests": len(runs),
        "good": len(good),
        "stages_in_time": sum(are_stages_in_time(run) for run in good),
        **{str(outcome): sum(run.outcome is outcome for run in runs) for outcome in Outcome if outcome != Outcome.MET},
        "turned_away": sum(run.visits[0].sent_at is None and len(run.visits) == 1 for run in runs),
        "seconds": seconds,
        "workflow_goodput": len(good) / seconds if seconds > 0 else 0.0,
        "slo_attainment": len(good) / len(runs) if runs else 0.0,
        "e2el": e2el.percentiles(),
        "nodes": {name: count.rates(window) for name, count in nodes.items()},
        "work_lost": 1.0 - useful / total if total > 0 else 0.0,
        "pools": _pools(runs, busy, replicas, seconds),
    }


def are_stages_in_time(run: Run) -> bool:
    """The artifact's criterion: in time at the end, and no stage later than the stages' own SLOs so far."""
    return run.outcome is Outcome.MET and all(
        visit.ended_at is not None and visit.ended_at <= visit.granted_until for visit in run.visits
    )


def _pools(
    runs: Iterable[Run], busy: Mapping[str, float], replicas: Mapping[str, int], seconds: float
) -> dict[str, dict[str, float]]:
    """By pool: share of its time in steps, mean seconds from queueing to the first unit, workflows that ended there."""
    waits: dict[str, list[float]] = {name: [] for name in replicas}
    ended: Counter[str] = Counter()
    for run in runs:
        for visit in run.visits:
            if visit.first_unit_at is not None:
                waits[visit.node.pool_name].append(visit.first_unit_at - visit.queued_at)
        if run.outcome is not Outcome.MET:
            ended[run.visits[-1].node.pool_name] += 1
    return {
        name: {
            "replicas": count,
            "busy": busy.get(name, 0.0) / (seconds * count) if seconds > 0 else 0.0,
            "wait": sum(waits[name]) / len(waits[name]) if waits[name] else 0.0,
            "lost_there": ended[name],
        }
        for name, count in replicas.items()
    }
