"""Service-level objectives. An SLO answers one question: by when is output unit k due?

An SLO is what the user states (absolute times, or scales on the request's standalone latency). Bound to an
arrival and a latency table it becomes `Deadlines`, which policies and metrics read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neustream.route import Route
    from neustream.tables import LatencyTable

MS_PER_S = 1000.0
MAX_SHOWN = 40
"""Characters of a user's text, or digits of a number, that a message repeats."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Deadline of output unit k (from 1): `first + (k−1)·pace + growth·k(k−1)/2`, and never after `last`.

    `first` and `last` are points in time, `pace` and `growth` seconds per unit. `growth` is there because a
    decode step takes longer as its context grows: with step j costing `a + b·(len + j − 1)`, the sum over
    j = 2…k is `(k−1)(a + b·len) + b·k(k−1)/2`. Without a pace (None), nothing but `last` binds the units after
    the first.
    """

    first: float = math.inf
    pace: float | None = None
    growth: float = 0.0
    last: float = math.inf

    def at(self, unit: int) -> float:
        """Deadline of output unit `unit`, in seconds on the driver's clock."""
        pace = self.pace
        if pace is not None:
            due = self.first + (unit - 1) * (pace + self.growth * unit * 0.5)
        else:
            due = self.first if unit == 1 else math.inf
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
        """The deadlines of a request that arrived at `arrival`. Only `tpot` gives them a pace."""
        pace = self.tpot if math.isfinite(self.tpot) else None
        return Deadlines(arrival + self.ttft, pace, 0.0, arrival + self.e2el)


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


@dataclass(frozen=True, slots=True)
class DueSlo:
    """Deadlines that somebody above has made already: `Deadlines` with its points in time counted from the arrival.

    What a coordinator grants a call crosses to the call's driver in this form, since two machines share no clock. A
    time at or below 0 is one that has passed.
    """

    due: float = math.inf
    pace: float | None = None
    growth: float = 0.0
    end: float = math.inf

    def __post_init__(self) -> None:
        for name, value in (("pace_s", self.pace or 0.0), ("growth_s", self.growth)):
            if value < 0:
                raise ValueError(f"SLO {name} must be at least 0, got {value:g}")

    @classmethod
    def of(cls, deadlines: Deadlines, now: float) -> DueSlo:
        """What is left of `deadlines` at `now`, on the clock that they are on."""
        return cls(deadlines.first - now, deadlines.pace, deadlines.growth, deadlines.last - now)

    def fields(self) -> dict[str, float]:
        """Its outside form. A time that is unbounded is left out."""
        values = {"due_s": self.due, "pace_s": self.pace, "growth_s": self.growth, "end_s": self.end}
        return {key: value for key, value in values.items() if value is not None and math.isfinite(value)}

    def bind(self, arrival: float, route: Route, size: int, table: LatencyTable | None) -> Deadlines:
        """The deadlines on the clock that `arrival` is on."""
        return Deadlines(arrival + self.due, self.pace, self.growth, arrival + self.end)


Slo = AbsoluteSlo | ScaleSlo | DueSlo


ABSOLUTE_KEYS = ("ttft_ms", "tpot_ms", "e2el_ms")
SCALE_KEYS = ("pslo", "dslo")
DUE_KEYS = ("due_s", "pace_s", "growth_s", "end_s")
SLO_KEYS = (*ABSOLUTE_KEYS, *SCALE_KEYS, "slo_scale", *DUE_KEYS)


def parse_slo(fields: Mapping[str, Any]) -> Slo:
    """An SLO from its outside form: `ttft_ms`, `tpot_ms`, `e2el_ms`, or `pslo`, `dslo`, or `slo_scale`.

    A fourth form, `due_s`, `pace_s`, `growth_s`, `end_s`, is for programs (see `DueSlo`).
    What it is given may come from anybody. Raises ValueError, one line, for all that is no SLO: no mapping, an
    unknown key, a value that is no finite number or out of range, a mixture of forms.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"an SLO is a mapping such as {{'ttft_ms': 500, 'tpot_ms': 50}}, got {_shown(fields)}")
    unknown = sorted(_shown(key).strip("'") for key in fields if key not in SLO_KEYS)
    if unknown or not fields:
        raise ValueError(f"SLO keys must be among {', '.join(sorted(SLO_KEYS))}; got {', '.join(unknown) or 'none'}")
    values = {key: _number(key, value) for key, value in fields.items()}
    if values.keys() <= set(ABSOLUTE_KEYS):
        return AbsoluteSlo(**{key.removesuffix("_ms"): value / MS_PER_S for key, value in values.items()})
    if values.keys() <= set(SCALE_KEYS):
        return ScaleSlo(values.get("pslo", 3.0), values.get("dslo", 1.5))
    if values.keys() == {"slo_scale"}:
        return ScaleSlo(values["slo_scale"])
    if values.keys() <= set(DUE_KEYS):
        return DueSlo(**{key.removesuffix("_s"): value for key, value in values.items()})
    raise ValueError(f"an SLO is absolute, pslo/dslo, slo_scale, or due_s …, not a mixture: {', '.join(values)}")


def _number(key: str, value: Any) -> float:
    """The value as a finite float. Raises ValueError for any other."""
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number beyond every float
            number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"SLO {key} must be a finite number, got {_shown(value)}")
    return number


def _shown(value: Any) -> str:
    """The value as a message may show it: short, in one line, and without looking into what it contains."""
    if isinstance(value, str):
        return repr(value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + "…")
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int) and abs(value) < 10**MAX_SHOWN:
        return repr(value)
    return f"something of type {type(value).__name__}"
