"""The settings of a run: the product of the lists that were given, each repeated with its own seed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LOADS = (0.6, 1.0, 1.4)
"""Multiples of the capacity that are tried where no rate is given."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the sweep, and which repeat of it."""

    index: int
    """Position in the run; requests and steps name it."""
    values: Mapping[str, float]
    """The axes: rate (requests per second), cv, SLO scales."""
    repeat: int
    seed: int

    def __getitem__(self, axis: str) -> float:
        return self.values[axis]

    def __str__(self) -> str:
        return " ".join(f"{name} {value:.4g}" for name, value in self.values.items()) + (
            f" (repeat {self.repeat})" if self.repeat else ""
        )


def sweep(axes: Mapping[str, Sequence[float]], *, repeats: int = 1, seed: int = 0) -> list[Setting]:
    """Every combination of the axes' values, in the order given, each `repeats` times with seeds seed, seed+1, …"""
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    pairs = itertools.product(points, range(repeats))
    return [Setting(index, point, repeat, seed + repeat) for index, (point, repeat) in enumerate(pairs)]


def default_rates(capacity: float, loads: Sequence[float] = LOADS) -> tuple[float, ...]:
    """`loads` × the capacity in requests per second, to four digits, so that two runs of one table agree."""
    return tuple(float(f"{load * capacity:.4g}") for load in loads)
