"""What a device's past says: how long its steps took, against its latency table, and how long texts became.

A driver keeps one `StepHistory` per device, tells it of every step and every end, and hands policies its `limits`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from neustream.cost import step_price, step_seconds
from neustream.output_lengths import LengthHistory
from neustream.plan import Limits, StepPlan
from neustream.request import Outcome, Request
from neustream.tables import LatencyTable

WEIGHT = 1 / 64
"""What one step counts for: a device that turns slower is known for it after about a hundred steps."""
RANGE = (0.5, 3.0)
"""A single step counts for no more than this: a pause of the machine is not what the next step will be like."""


@dataclass(slots=True)
class RunningRatio:
    """Exponentially weighted mean of measured over predicted seconds, and of the distance to it."""

    mean: float = 1.0
    deviation: float = 0.0

    def add(self, ratio: float) -> None:
        """Count one more step."""
        away = ratio - self.mean
        self.mean += WEIGHT * away
        self.deviation += WEIGHT * (abs(away) - self.deviation)

    @property
    def cautious(self) -> float:
        """The mean plus the mean deviation: what steps take, and some room for what cannot be foreseen."""
        return self.mean + self.deviation


class DriftMeter:
    """Told of each step before and after, it keeps `ratios`: kind of step → measured over predicted seconds.

    The ratios are cautious: the mean plus the mean deviation. 1 means that steps take what the table says and do so
    reliably. A kind that has not run has no ratio. The mean rather than the median: what a request waits for is a sum
    of steps, the long ones included.
    """

    def __init__(self, table: LatencyTable) -> None:
        self.table = table
        self.ratios: dict[str, float] = {}
        self.beside: dict[str, float] = {}
        """The same of steps that shared the device with a step of another process."""
        self.expected: float | None = None
        """Seconds that the table predicts for the step under way; None where it does not know its module."""
        self._price = step_price(table)
        self._running: dict[str, RunningRatio] = {}
        self._running_beside: dict[str, RunningRatio] = {}
        self._expected_kind: str | None = None

    def expect(self, plan: StepPlan) -> None:
        """A step is about to run; its requests are still what they were when it was planned."""
        known = plan.module is not None and plan.module in self.table
        self.expected = step_seconds(self.table, plan, self._price) if known else None
        self._expected_kind = plan.kind if known else None

    def observe(self, kind: str, seconds: float, *, alone: bool = True) -> None:
        """A step of that kind has taken `seconds`. Nothing is learnt from one that was not expected."""
        expected, known = self.expected, self._expected_kind
        self.expected = self._expected_kind = None
        if expected is not None and known == kind:
            self.learn(kind, seconds, expected, alone=alone)

    def learn(self, kind: str, seconds: float, expected: float, *, alone: bool = True) -> None:
        """A step of that kind took `seconds` where the table says `expected`; `alone`: it had the device to itself."""
        ratio = round(seconds / expected, 6)  # a clock's last digits are not drift
        known = self._running if alone else self._running_beside
        running = known.get(kind)
        if running is None:
            running = known[kind] = RunningRatio()
        low, high = RANGE
        running.add(min(max(ratio, low), high))
        (self.ratios if alone else self.beside)[kind] = running.cautious


class StepHistory:
    """One device's past, as policies are told it: `limits` adds it to what the device holds.

    A driver calls `planned` when a step is planned, `ended` when it has ended, and `finished` for each request that
    has ended. Without a table there is no drift. A driver that plans a step before the last one has ended keeps each
    plan's `expected` itself, and calls `ended_as`.
    """

    def __init__(self, table: LatencyTable | None = None) -> None:
        self.last_seconds: dict[str, float] = {}
        self.lengths: dict[str, LengthHistory] = {}
        self._meter = DriftMeter(table) if table is not None else None

    @property
    def drift(self) -> Mapping[str, float]:
        """Measured over predicted seconds of each kind of step; see `DriftMeter`."""
        return self._meter.ratios if self._meter is not None else {}

    @property
    def beside(self) -> Mapping[str, float]:
        """As `drift`, of steps that shared the device with a step of another process."""
        return self._meter.beside if self._meter is not None else {}

    @property
    def expected(self) -> float | None:
        """Seconds that the table predicts for the step under way; None where it cannot, or nothing is under way."""
        return self._meter.expected if self._meter is not None else None

    def limits(self, held: Limits) -> Limits:
        """What the device holds and can do, with what its past says filled in."""
        return replace(held, last_seconds=self.last_seconds, drift=self.drift, beside=self.beside, lengths=self.lengths)

    def planned(self, plan: StepPlan) -> None:
        """A step is about to run; its requests have not moved yet."""
        if self._meter is not None:
            self._meter.expect(plan)

    def ended(self, kind: str, seconds: float, deciding: float = 0.0, *, learns: bool = True) -> None:
        """The step that was planned took `seconds`; planning took `deciding` before it, which counts as drift.

        Without `learns` no drift is learnt of it, as a step of another process had a part in its seconds: those count
        for `beside`.
        """
        self.last_seconds[kind] = seconds
        if self._meter is not None:
            self._meter.observe(kind, seconds + deciding, alone=learns)

    def ended_as(self, kind: str, seconds: float, expected: float | None) -> None:
        """As `ended`, from a driver that kept what the table had predicted: its next step is planned already."""
        self.last_seconds[kind] = seconds
        if self._meter is not None and expected is not None:
            self._meter.learn(kind, seconds, expected)

    def finished(self, request: Request) -> None:
        """A request has ended. Its length counts where its output came to its own end."""
        if request.outcome in (Outcome.MET, Outcome.LATE):
            known = self.lengths.get(request.slo_class)
            if known is None:
                known = self.lengths[request.slo_class] = LengthHistory()
            known.add(request.units, is_cut=request.units >= request.max_units)
