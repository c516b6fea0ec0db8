"""A plan: how many replicas each pool has, over how many devices each is spread, and the plans one move away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

MOST_SPREAD = 4
"""Devices that one replica may be spread over."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Replicas by pool, and whether the nodes of a model share a pool."""

    replicas: tuple[tuple[str, int], ...]
    is_pooled: bool
    spread: tuple[tuple[str, int], ...] = ()
    """Devices of each replica of a pool, where that is more than one."""

    @property
    def num_devices(self) -> int:
        """Devices that it takes."""
        wide = dict(self.spread)
        return sum(count * wide.get(name, 1) for name, count in self.replicas)

    def __str__(self) -> str:
        wide = dict(self.spread)
        split = ", ".join(
            f"{name} {count}" + (f" x {wide[name]} devices" if name in wide else "") for name, count in self.replicas
        )
        return f"{split} ({'one pool a model' if self.is_pooled else 'one pool a node'})"


def shifts(plan: Plan) -> Iterator[Plan]:
    """Every plan with one replica moved from one pool to another whose replicas have as many devices."""
    counts, wide = dict(plan.replicas), dict(plan.spread)
    for source, count in counts.items():
        for target in counts:
            if target != source and count > 1 and wide.get(source, 1) == wide.get(target, 1):
                moved = counts | {source: count - 1, target: counts[target] + 1}
                yield replace(plan, replicas=tuple(moved.items()))


def spreads(plan: Plan) -> Iterator[Plan]:
    """Every plan in which the replicas of one pool are joined in pairs, or split in two."""
    counts, wide = dict(plan.replicas), dict(plan.spread)
    for name, count in counts.items():
        devices = wide.get(name, 1)
        if count % 2 == 0 and 2 * devices <= MOST_SPREAD:
            yield _with(plan, name, count // 2, 2 * devices)
        if devices > 1:
            yield _with(plan, name, count * 2, devices // 2)


def _with(plan: Plan, name: str, count: int, devices: int) -> Plan:
    counts = dict(plan.replicas) | {name: count}
    wide = {pool: n for pool, n in (dict(plan.spread) | {name: devices}).items() if n > 1}
    return replace(plan, replicas=tuple(counts.items()), spread=tuple(sorted(wide.items())))
