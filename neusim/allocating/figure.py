"""A picture of goodput against devices: what the best plan of each number serves in time, and the fluid capacity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Point(NamedTuple):
    """What a number of devices gives."""

    devices: int
    share: float
    """Of the workflows that come, those in time under the best plan."""
    capacity: float
    """Fluid capacity of the best split, workflows per second."""
    plan: str


def draw(points: Sequence[Point], rate: float, path: Path) -> None:
    """Draw it; `rate` workflows come per second. The format is what the file's name ends in."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    devices = [point.devices for point in points]
    axes.plot(devices, [rate * point.share for point in points], "o-", label="in time, best plan found")
    axes.plot(devices, [point.capacity for point in points], "s--", color="0.5", label="fluid capacity, best split")
    axes.axhline(rate, color="0.7", linestyle=":", label=f"workflows that come: {rate:g}/s")
    for point in points:
        counts = point.plan.split(" (")[0]
        axes.annotate(counts.replace(", ", "\n"), (point.devices, rate * point.share), fontsize=6, xytext=(4, -4),
                      textcoords="offset points", va="top")  # fmt: skip
    axes.set_xlabel("devices")
    axes.set_ylabel("workflows per second")
    axes.set_xticks(devices)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)
