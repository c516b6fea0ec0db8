"""How a device differs from its latency table, as a planner should reckon with it."""

from __future__ import annotations

from dataclasses import dataclass

from neustream.cost import step_seconds
from neustream.plan import StepPlan
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
    """Told of each step before and after, it keeps `ratios`: module → measured over predicted seconds, cautiously.

    1 means that steps take what the table says and do so reliably. A module that has not run has no ratio. The
    mean rather than the median: what a request waits for is a sum of steps, the long ones included.
    """

    def __init__(self, table: LatencyTable) -> None:
        self.table = table
        self.ratios: dict[str, float] = {}
        self._running: dict[str, RunningRatio] = {}
        self._expected: tuple[str, float] | None = None

    def expect(self, plan: StepPlan) -> None:
        """A step is about to run; its requests are still what they were when it was planned."""
        known = plan.module is not None and plan.module in self.table
        self._expected = (str(plan.module), step_seconds(self.table, plan)) if known else None

    def observe(self, module: str, seconds: float) -> None:
        """A step of `module` has taken `seconds`. Nothing is learnt from one that was not expected."""
        expected, self._expected = self._expected, None
        if expected is None or expected[0] != module:
            return
        ratio = round(seconds / expected[1], 6)  # a clock's last digits are not drift
        running = self._running.get(module)
        if running is None:
            running = self._running[module] = RunningRatio()
        low, high = RANGE
        running.add(min(max(ratio, low), high))
        self.ratios[module] = running.cautious
