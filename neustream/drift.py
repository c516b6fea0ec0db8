"""How a device differs from its latency table: the running median of measured over predicted seconds."""

from __future__ import annotations

from neustream.cost import step_seconds
from neustream.plan import StepPlan
from neustream.tables import LatencyTable

PACE = 1 / 256
"""How far one step moves the median. A table that is off by a tenth is noticed within 26 steps."""
RANGE = (0.5, 2.0)
"""The median stays within this: a table that is further off should be measured anew."""


class DriftMeter:
    """Told of each step before and after, it keeps `ratios`: module → running median.

    1 means that steps take what the table says. A module that has not run has no ratio. The median rather
    than the mean: a pause of the machine, a cold start, or a step that shared the device with another process
    says nothing about the table.
    """

    def __init__(self, table: LatencyTable) -> None:
        self.table = table
        self.ratios: dict[str, float] = {}
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
        known = self.ratios.get(module, 1.0)
        low, high = RANGE
        ratio = min(max(ratio, low), high)
        self.ratios[module] = min(max(ratio, known - PACE), known + PACE)
