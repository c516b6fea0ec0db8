"""Time points of a module's grid: warm-up, interleaved passes, medians of the calm visits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from statistics import mean, median
from typing import TypeVar

from tqdm import tqdm

from neusim.profiling.visits import CALM, Partial, Visit, believed
from neustream.cli.disturbance import waited_seconds

P = TypeVar("P", bound=Hashable)
Visits = Mapping[P, Sequence[Visit]]
PATIENCE = 3
"""How much longer than planned a point is measured where other work keeps disturbing it."""


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
) -> dict[P, list[Visit]]:
    """Visit every point until it has `repeats` calm visits; returns the visits of each, in their order.

    `run_point(point)` brings the device into the point's state, times one or more like steps and returns
    their seconds; a visit counts as their median. Each pass goes once over all points, so that a burst of
    other work on the machine spoils one visit of many points rather than all visits of one. The first
    `warmup` runs of a point in this process are dropped, and a point that has taken `seconds_per_point`
    is not visited again (once is then enough: a long step is little disturbed by first use). While it has no
    calm visit it gets `PATIENCE` times as much; nor is any visited more than `PATIENCE` × `repeats` times.

    Points are kept in `partial` by their `str`, which must tell them apart; visits found there are not
    repeated. It is saved when this returns or is interrupted; discarding it is the caller's business, when
    the table is written. The bar goes to standard error, and only where that is a terminal.
    """
    if len({str(point) for point in points}) != len(points):
        raise ValueError("two points have the same name")
    visits: dict[P, list[Visit]] = {}
    for point in points:
        visits[point] = list(partial.visits.get(str(point), ())) if partial else []
    spent = {point: sum(visit.seconds for visit in found) for point, found in visits.items()}
    warm: dict[P, int] = dict.fromkeys(points, 0)

    def is_done(point: P) -> bool:
        calm = sum(visit.waited <= CALM for visit in visits[point])
        if calm >= repeats or len(visits[point]) >= PATIENCE * repeats:
            return True
        return bool(visits[point]) and spent[point] >= seconds_per_point * (1 if calm else PATIENCE)

    def visit(point: P) -> Visit:
        while True:
            start, waited = time.perf_counter(), waited_seconds()
            seconds = median(run_point(point))
            wall = time.perf_counter() - start
            spent[point] += wall
            if warm[point] >= warmup or spent[point] >= seconds_per_point:
                return Visit(seconds, (waited_seconds() - waited) / wall)
            warm[point] += 1

    with ExitStack() as stack:
        if partial:
            stack.callback(partial.save)
        bar = stack.enter_context(tqdm(total=len(points) * repeats, desc=label, disable=None if progress else True))
        while left := [point for point in points if not is_done(point)]:
            bar.n = sum(repeats if is_done(point) else min(len(visits[point]), repeats) for point in points)
            for point in left:
                bar.set_postfix_str(str(point), refresh=False)
                visits[point].append(visit(point))
                if partial:
                    partial.add(str(point), visits[point][-1])
                bar.update()
        bar.n = bar.total
    return visits


def medians(visits: Visits[P]) -> dict[P, float]:
    """The seconds of each point: the median of its calm visits, or the calmest visit where none was calm."""
    return {point: median(believed(found)) for point, found in visits.items()}


def trusted(visits: Visits[P]) -> dict[P, float]:
    """As `medians`, without the points that have no calm visit, as long as half of the points remain."""
    calm = {point: found for point, found in visits.items() if is_calm(found)}
    return medians(calm if 2 * len(calm) >= len(visits) else visits)


def is_calm(visits: Sequence[Visit]) -> bool:
    """Whether any of the visits was undisturbed."""
    return any(visit.waited <= CALM for visit in visits)


def spread(visits: Visits[P]) -> float:
    """How much calm visits of one point differ: (largest − smallest) / median, the median over all points.

    0 where no point has two of them.
    """
    several = [seconds for found in visits.values() if len(seconds := believed(found)) > 1]
    return median((max(s) - min(s)) / median(s) for s in several) if several else 0.0


def disturbed(visits: Visits[P]) -> float:
    """The share of the points that no calm visit was made of."""
    return mean(not is_calm(found) for found in visits.values())
