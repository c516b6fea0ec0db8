"""Time points of a module's grid: warm-up, interleaved passes, medians."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from typing import TypeVar

from tqdm import tqdm

from neusim.profiling.partial import Partial

P = TypeVar("P", bound=Hashable)


def measure(
    points: Sequence[P],
    run_point: Callable[[P], Sequence[float]],
    *,
    repeats: int,
    warmup: int = 1,
    seconds_per_point: float = math.inf,
    partial: Partial | None = None,
    progress: bool = True,
    label: str = "measuring",
) -> dict[P, list[float]]:
    """Visit every point `repeats` times; returns the seconds of each visit, in the order of the visits.

    `run_point(point)` brings the device into the point's state, times one or more like steps and returns
    their seconds; a visit counts as their median. Each pass goes once over all points, so that a burst of
    other work on the machine spoils one visit of many points rather than all visits of one. The first
    `warmup` visits of a point in this process are dropped, and a point that has taken `seconds_per_point`
    is not visited again (once is then enough: a long step is little disturbed by first use).

    Points are kept in `partial` by their `str`, which must tell them apart; visits found there are not
    repeated. It is saved when this returns or is interrupted; discarding it is the caller's business, when
    the table is written. The bar goes to standard error, and only where that is a terminal.
    """
    if len({str(point) for point in points}) != len(points):
        raise ValueError("two points have the same name")
    visits: dict[P, list[float]] = {}
    for point in points:
        visits[point] = list(partial.visits.get(str(point), ())) if partial else []
    spent = {point: sum(found) for point, found in visits.items()}
    warm: dict[P, int] = dict.fromkeys(points, 0)

    def is_done(point: P) -> bool:
        return len(visits[point]) >= repeats or (bool(visits[point]) and spent[point] >= seconds_per_point)

    with ExitStack() as stack:
        if partial:
            stack.callback(partial.save)
        bar = stack.enter_context(tqdm(total=len(points) * repeats, desc=label, disable=None if progress else True))
        while True:
            bar.n = sum(repeats if is_done(point) else len(visits[point]) for point in points)
            bar.refresh()
            left = [point for point in points if not is_done(point)]
            if not left:
                return visits
            for point in left:
                bar.set_postfix_str(str(point), refresh=False)
                seconds = list(run_point(point))
                spent[point] += sum(seconds)
                while warm[point] < warmup and spent[point] < seconds_per_point:
                    warm[point] += 1
                    seconds = list(run_point(point))
                    spent[point] += sum(seconds)
                visit = statistics.median(seconds)
                visits[point].append(visit)
                if partial:
                    partial.add(str(point), visit)
                bar.update()


def medians(visits: dict[P, list[float]]) -> dict[P, float]:
    """The seconds of each point: the median of its visits."""
    return {point: statistics.median(seconds) for point, seconds in visits.items()}


def spread(visits: dict[P, list[float]]) -> float:
    """How much visits of one point differ: (largest − smallest) / median, the median over all points.

    0 where no point was visited twice.
    """
    ranges = [(max(s) - min(s)) / statistics.median(s) for s in visits.values() if len(s) > 1]
    return statistics.median(ranges) if ranges else 0.0
