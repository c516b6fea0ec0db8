"""The exact small model: how many replicas each pool gets so that the fluid capacity is largest, by HiGHS."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp


def best_split(seconds: Mapping[str, float], devices: int) -> tuple[dict[str, int], float]:
    """Replicas by pool and the workflows per second that they serve by the fluid model, which no split exceeds.

    `seconds` has the replica seconds that a workflow takes of each pool. With n replicas of pool p the rate is at most
    n / seconds[p]; the model maximises the least of these with at most `devices` replicas, one at least for each pool.
    Raises ValueError where there are fewer devices than pools.
    """
    names = list(seconds)
    if devices < len(names):
        raise ValueError(f"{len(names)} pools ({', '.join(names)}) need {len(names)} devices at least, got {devices}")
    num = len(names)
    rows = np.zeros((num + 1, num + 1))
    for i, name in enumerate(names):  # n_i - seconds_i * rate >= 0
        rows[i, i], rows[i, num] = 1.0, -seconds[name]
    rows[num, :num] = 1.0
    low = np.append(np.zeros(num), num)
    high = np.append(np.full(num, np.inf), devices)
    found = milp(
        c=np.append(np.zeros(num), -1.0),
        constraints=LinearConstraint(rows, low, high),
        bounds=Bounds(np.append(np.ones(num), 0.0), np.append(np.full(num, devices), np.inf)),
        integrality=np.append(np.ones(num), 0),
    )
    assert found.success, found.message
    counts = {name: round(count) for name, count in zip(names, found.x[:num], strict=True)}
    for _ in range(devices - sum(counts.values())):  # devices that the model left over go where most is asked
        scarce = max(names, key=lambda name: seconds[name] / counts[name])
        counts[scarce] += 1
    return counts, min(counts[name] / seconds[name] for name in names if seconds[name] > 0)
