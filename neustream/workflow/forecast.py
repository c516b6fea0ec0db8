"""What the finished calls say of those to come: lengths, seconds, ways through the graph, waiting in front of pools."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from statistics import median

from neustream.output_lengths import LengthHistory
from neustream.workflow.graph import Edge, Workflow
from neustream.workflow.run import Run, Visit
from neustream.workflow.stage import StageCost

ENOUGH = 8
"""Finished calls of a node from which on they are believed rather than the node's description."""
WEIGHT = 1 / 16
"""What one finished call counts for in the running means."""
RECENT = 256
"""Finished calls of a node whose standalone seconds are remembered."""
MAX_ROUNDS = 64
"""Steps into the future up to which a walk through the graph is followed."""


class NodeHistory:
    """The finished calls of one node."""

    def __init__(self, stage: StageCost) -> None:
        self.stage = stage
        self.lengths = LengthHistory()
        self.stretch = 1.0
        """Measured over standalone seconds of a call once it runs; a running mean."""
        self.seconds: float | None = None
        """What a tool's run takes; a running mean, None before the first."""
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._typical: tuple[float, float] | None = None

    def add(self, visit: Visit) -> None:
        """A call has finished, after all its units."""
        assert visit.ended_at is not None
        started = visit.queued_at if visit.sent_at is None else visit.sent_at
        if visit.first_unit_at is not None and visit.units > 1:
            started = visit.first_unit_at
        self.lengths.add(visit.units)
        alone = self.stage.alone(visit.size, visit.units)
        self._recent.append((alone, self.stage.granted(visit.size, visit.units)))
        self._typical = None
        seconds = visit.ended_at - started
        if self.stage.node.kind == "tool":
            self.seconds = seconds if self.seconds is None else self.seconds + WEIGHT * (seconds - self.seconds)
            return
        rest = alone - self.stage.alone(visit.size, 1) if visit.units > 1 else alone
        if rest > 0:
            self.stretch += WEIGHT * (max(seconds / rest, 1.0) - self.stretch)

    @property
    def is_known(self) -> bool:
        """Whether enough calls have finished to be believed."""
        return len(self.lengths) >= ENOUGH

    def units(self, so_far: int = 0) -> int:
        """Output units that a call is expected to have in all, once `so_far` are there: the median of the finished."""
        most = self.stage.node.max_units
        known = self.lengths.quantile(0.5, so_far) if self.is_known else min(self.stage.typical_units, most)
        return min(max(known if known is not None else most, so_far + 1), most)

    def alone(self) -> float:
        """Standalone seconds of a call about which nothing is known yet."""
        if self.stage.node.kind == "tool" and self.seconds is not None:
            return self.seconds
        return self._medians()[0]

    def granted(self) -> float:
        """Seconds that the stage's own SLO grants a call about which nothing is known yet."""
        return self._medians()[1]

    def _medians(self) -> tuple[float, float]:
        """Of the finished calls: standalone seconds, and those granted."""
        if self._typical is None:
            if self.is_known:
                alone, granted = zip(*self._recent, strict=True)
                self._typical = median(alone), median(granted)
            else:
                size, units = self.stage.typical_size, self.units()
                self._typical = self.stage.alone(size, units), self.stage.granted(size, units)
        return self._typical


class Forecast:
    """What is expected of the workflows of one graph, from those that have gone before."""

    def __init__(self, workflow: Workflow, stages: Mapping[str, StageCost]) -> None:
        missing = [node.name for node in workflow.nodes if node.name not in stages]
        if missing:
            raise ValueError(f"workflow {workflow.name!r}: no cost is given for node {', '.join(missing)}")
        self.workflow = workflow
        self.nodes = {node.name: NodeHistory(stages[node.name]) for node in workflow.nodes}
        self._ways: dict[str, Counter[Edge | None]] = {node.name: Counter() for node in workflow.nodes}
        self._visits: dict[str, dict[str, float]] = {}

    def finished(self, visit: Visit, edge: Edge | None) -> None:
        """A call has finished, and its result took `edge` (None: the workflow ended)."""
        self.nodes[visit.node.name].add(visit)
        self._ways[visit.node.name][edge] += 1
        self._visits.clear()

    def shares(self, name: str) -> dict[Edge | None, float]:
        """How probable each way out of a node is. Before any call it is the plain way: the edge for every result."""
        ways = self._ways[name]
        total = sum(ways.values())
        if total >= ENOUGH:
            return {edge: count / total for edge, count in ways.items()}
        plain = [edge for edge in self.workflow.leaving(name) if edge.at_most is None and edge.when is None]
        others = [edge for edge in self.workflow.leaving(name) if edge.at_most is None]
        return {next(iter(plain + others), None): 1.0}

    def visits_after(self, name: str) -> dict[str, float]:
        """Expected visits to each node once the call of node `name` has ended: how often walks go there on average."""
        known = self._visits.get(name)
        if known is None:
            known = self._visits[name] = self._walk(name)
        return known

    def _walk(self, name: str) -> dict[str, float]:
        expected: dict[str, float] = {}
        mass = {name: 1.0}
        for _ in range(MAX_ROUNDS):
            coming: dict[str, float] = {}
            for source, share in mass.items():
                for edge, probability in self.shares(source).items():
                    if edge is not None and share * probability > 1e-6:
                        coming[edge.target] = coming.get(edge.target, 0.0) + share * probability
            if not coming:
                break
            for target, share in coming.items():
                expected[target] = expected.get(target, 0.0) + share
            mass = coming
        return expected

    def rest_seconds(self, name: str) -> float:
        """Seconds that the stages after node `name` are expected to take, at the pace at which they run these days."""
        visits = self.visits_after(name)
        return sum(share * self.nodes[node].alone() * self.nodes[node].stretch for node, share in visits.items())

    def rest_granted(self, name: str) -> float:
        """Seconds that the stages after node `name` are expected to be granted by their own SLOs."""
        return sum(share * self.nodes[node].granted() for node, share in self.visits_after(name).items())

    def deadline(self, run: Run) -> float:
        """When the run must be done: what its user stated, or the sum of the stages' own SLOs as far as it can be told.

        What is finished counts by its true length, the call under way by what it has delivered, the rest by history.
        """
        if run.deadline is not None:
            return run.deadline
        if run.node is None:
            first = self.workflow.start.name
            return run.granted_until + self.nodes[first].granted() + self.rest_granted(first)
        history, visit = self.nodes[run.node.name], run.visit
        own = history.stage.granted(visit.size, history.units(visit.units))
        return run.granted_until + own + self.rest_granted(run.node.name)
