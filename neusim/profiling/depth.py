"""From two small depths of a model to its full depth: all of its layers are alike, the rest is there once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

P = TypeVar("P", bound=Hashable)


def to_full_depth(shallow: float, deep: float, layers: tuple[int, int], num_layers: int) -> float:
    """Seconds at `num_layers`, on the line through the seconds at the two depths `layers`.

    `t(L) = t(0) + L × (seconds of a layer)`. Where noise makes the deeper model the faster one, a layer
    counts as free rather than as less.
    """
    first, second = layers
    per_layer = max((deep - shallow) / (second - first), 0.0)
    return shallow + per_layer * (num_layers - first)


def extrapolate(
    shallow: Mapping[P, float], deep: Mapping[P, float], layers: tuple[int, int], num_layers: int
) -> dict[P, float]:
    """Seconds of each point at the full depth, from those at the two depths `layers`."""
    return {point: to_full_depth(seconds, deep[point], layers, num_layers) for point, seconds in shallow.items()}
