"""Service-level objectives. An SLO answers one question: by when is output unit k due?

An SLO is what the user states (absolute times, or scales on the request's standalone latency). Bound to an
arrival and a latency table it becomes `Deadlines`, which policies and metrics read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neustream.route import Route
    from neustream.tables import LatencyTable

MS_PER_S = 1000.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Deadline of output unit k (from 1): `first + (k−1)·pace + growth·k(k−1)/2`, and never after `last`.

    `first` and `last` are points in time, `pace` and `growth` seconds per unit. `growth` is there because a
    decode step takes longer as its context grows: with step j costing `a + b·(len + j − 1)`, the sum over
    j = 2…k is `(k−1)(a + b·len) + b·k(k−1)/2`.
    """

    first: float = math.inf
    pace: float = 0.0
    growth: float = 0.0
    last: float = math.inf

    def at(self, unit: int) -> float:
        """Deadline of output unit `unit`, in seconds on the driver's clock."""
        steps = unit - 1
        due = self.first + steps * (self.pace + self.growth * unit * 0.5)
        return due if due < self.last else self.last


NO_DEADLINES = Deadlines()


@dataclass(frozen=True, slots=True)
class AbsoluteSlo:
    """Seconds from arrival: to the first unit, per further unit, and to the end; all given must hold."""

    ttft: float = math.inf
    tpot: float = math.inf
    e2el: float = math.inf

    def __post_init__(self) -> None:
        for name in ("ttft", "tpot", "e2el"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"SLO {name}_ms must be above 0, got {value * MS_PER_S:g}")
        if math.isfinite(self.tpot) and not math.isfinite(self.ttft):
            raise ValueError("SLO tpot_ms needs ttft_ms too: token k is due at ttft + (k-1) x tpot")

    def bind(self, arrival: float, route: Route, size: int, table: LatencyTable | None) -> Deadlines:
        """The deadlines of a request that arrived at `arrival`."""
        pace = self.tpot if math.isfinite(self.tpot) else 0.0
        # Without a pace the units after the first are bound by the end alone.
        first = arrival + self.ttft
        if math.isfinite(self.ttft) and not math.isfinite(self.tpot):
            emits_many = sum(stage.visits for stage in route if stage.emits) > 1
            pace = math.inf if emits_many else 0.0
        if pace == math.inf:
            return FirstOnly(first, last=arrival + self.e2el)
        return Deadlines(first, pace, 0.0, arrival + self.e2el)


@dataclass(frozen=True, slots=True)
class FirstOnly(Deadlines):
    """Deadlines with none between the first unit's and the end."""

    def at(self, unit: int) -> float:
        return min(self.first, self.last) if unit == 1 else self.last


@dataclass(frozen=True, slots=True)
class ScaleSlo:
    """Scales on the standalone latency: `first` on the way to the first unit, `rest` on each unit after it.

    For an LLM, `first` is pslo (× prefill of the prompt alone) and `rest` is dslo (× Σ standalone decode
    steps). For an image the one unit comes at the end, so `first` scales the whole pipeline.
    """

    first: float
    rest: float = 1.5

    def __post_init__(self) -> None:
        for name in ("first", "rest"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 1.0):
                raise ValueError(f"an SLO scale must be at least 1, got {value:g}")

    def bind(self, arrival: float, route: Route, size: int, table: LatencyTable | None) -> Deadlines:
        """The deadlines of a request that arrived at `arrival`, from the table's standalone latencies.

        Raises ValueError without a table: there is nothing to scale.
        """
        if table is None:
            raise ValueError("an SLO given as a scale needs a latency table")
        alone = 0.0
        emitting = [i for i, stage in enumerate(route) if stage.emits and stage.visits]
        if not emitting:
            alone = sum(table[stage.module].alone(size) * stage.visits for stage in route)
            return Deadlines(arrival + self.first * alone)
        for stage in route[: emitting[0]]:
            alone += table[stage.module].alone(size) * stage.visits
        alone += table[route[emitting[0]].module].alone(size)
        later = route[emitting[1]] if len(emitting) > 1 else route[emitting[0]]
        model = table[later.module]
        return Deadlines(arrival + self.first * alone, self.rest * model.alone(size), self.rest * model.slope)


Slo = AbsoluteSlo | ScaleSlo


def parse_slo(fields: Mapping[str, Any]) -> Slo:
    """An SLO from its outside form: `ttft_ms`, `tpot_ms`, `e2el_ms`, or `pslo`, `dslo`, or `slo_scale`.

    Raises ValueError for an unknown key, a mixture of both forms, or a value out of range.
    """
    absolute = {"ttft_ms", "tpot_ms", "e2el_ms"}
    scales = {"pslo", "dslo", "slo_scale"}
    unknown = set(fields) - absolute - scales
    if unknown or not fields:
        known = ", ".join(sorted(absolute | scales))
        raise ValueError(f"SLO keys must be among {known}; got {', '.join(sorted(unknown)) or 'none'}")
    for key, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"SLO {key} must be a number, got {value!r}")
    if set(fields) <= absolute:
        return AbsoluteSlo(**{key.removesuffix("_ms"): value / MS_PER_S for key, value in fields.items()})
    if set(fields) <= {"pslo", "dslo"}:
        return ScaleSlo(float(fields.get("pslo", 3.0)), float(fields.get("dslo", 1.5)))
    if set(fields) == {"slo_scale"}:
        return ScaleSlo(float(fields["slo_scale"]))
    raise ValueError(f"an SLO is absolute, or pslo/dslo, or slo_scale, not a mixture: {', '.join(fields)}")
