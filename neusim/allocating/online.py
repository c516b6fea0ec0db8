"""Whether a running deployment should move to another plan: the gain, by the last window, against the restart."""

from __future__ import annotations

import math
from dataclasses import dataclass

from neusim.allocating.plan import Plan

SURE = 2.0
"""The gain must be so many times its own standard error."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to move, and why: figures in workflows in time until the plan is thought over again."""

    moves: bool
    gain: float
    cost: float
    reason: str


def devices_that_move(now: Plan, then: Plan) -> int:
    """Devices whose process must be ended and another one started.

    Replicas of the same pool with as many devices stay. Pools of both plans have the same name where they serve the
    same nodes.
    """
    wide, wide_then = dict(now.spread), dict(then.spread)
    counts = dict(now.replicas)
    kept = sum(
        min(counts.get(name, 0), count) * wide.get(name, 1)
        for name, count in then.replicas
        if wide.get(name, 1) == wide_then.get(name, 1)
    )
    return then.num_devices - kept


def decide(
    now: Plan, then: Plan, *, good_now: int, good_then: int, window: float, horizon: float, restart: float
) -> Decision:
    """Move only if the gain until the next decision exceeds what the restart costs, and what chance explains.

    `good_now` and `good_then` are the workflows in time that either plan has of the last `window` seconds, simulated.
    The next decision comes in `horizon` seconds. A device that moves serves nothing for `restart` seconds, for draining
    and loading: its share of the goodput is lost. The plans meet the same workflows, so that the standard error of
    their difference is the root of the number of workflows that are in time under one of them only. Those are no fewer
    than the difference, which is what is taken here. Raises ValueError for seconds that are not above 0.
    """
    for name, value in (("window", window), ("horizon", horizon), ("restart", restart)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a number of seconds above 0, got {value!r}")
    better = good_then - good_now
    gain = better / window * max(horizon - restart, 0.0)
    moved = devices_that_move(now, then)
    cost = good_now / window * restart * moved / now.num_devices
    if now == then or not moved:
        return Decision(False, gain, 0.0, "the plan is the best that was found")
    if better <= SURE * math.sqrt(max(better, 0)):
        return Decision(False, gain, cost, f"{better} more of the last window's workflows in time may be chance")
    if gain <= cost:
        return Decision(False, gain, cost, f"a gain of {gain:.1f} workflows does not exceed the restart's {cost:.1f}")
    return Decision(True, gain, cost, f"a gain of {gain:.1f} workflows exceeds the restart's {cost:.1f}")
