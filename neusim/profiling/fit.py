"""Latency models from measured points, and how well they predict points that the fit has not seen.

All fits weigh relative errors alike, so that a 5 ms step counts as much as a 5 s one; coefficients are not
negative, so that no larger batch is ever predicted to be cheaper; and residuals beyond 10 % count linearly
(Huber's loss), so that a point spoilt by other work on the machine does not bend the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neusim.profiling.grid import MixedShape
from neustream.latency import (
    BatchLatency,
    ContextLatency,
    LatencyModel,
    MixedLatency,
    Shape,
    TokensLatency,
    interpolate,
    levelled,
)

HUBER = 0.1
ROUNDS = 20
SAME = 0.1
"""Compositions of a prefill whose seconds differ by less than this share one entry of the grid."""
NOISE_FLOOR = 0.02
"""Dips of a grid smaller than this are never taken for real, however well the visits agree."""

Points = Mapping[Shape, float]
Floats = NDArray[np.float64]


def solve(columns: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Non-negative x that minimises Huber's loss of the relative errors of Σ x·column against `seconds`."""
    from scipy.optimize import nnls  # here, so that grids by batch size are fitted where scipy is not installed

    target: Floats = np.asarray(seconds, dtype=np.float64)
    rows: Floats = np.asarray(columns, dtype=np.float64).T / target[:, None]
    scale: Floats = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    weights: Floats = np.ones(len(target))
    solution: Floats = np.zeros(rows.shape[1])
    for _ in range(ROUNDS):
        root = np.sqrt(weights)
        solution = nnls(rows / scale * root[:, None], root)[0] / scale
        errors = np.abs(rows @ solution - 1.0)
        weights = np.minimum(1.0, HUBER / np.maximum(errors, 1e-12))
    return [float(x) for x in solution]


def fit_prefill(points: Points, held_out: Points) -> tuple[TokensLatency, dict[str, Any]]:
    """`a + b·Σlen + c·Σlen²`, and a grid over Σlen where interpolating in it errs less than the formula does.

    What decides is each inner entry of the grid against the line through its neighbours. Needs at least 3
    points that differ in Σlen.
    """
    shapes = list(points)
    columns: list[list[float]] = [[1.0] * len(shapes), [s.work for s in shapes], [s.work_squared for s in shapes]]
    a, b, c = solve(columns, list(points.values()))
    model = TokensLatency((a, b, c))
    grid = prefill_grid(points)
    works, values = list(grid), list(grid.values())
    inner = range(1, len(grid) - 1)
    if inner:
        gaps = [interpolate(works[:i] + works[i + 1 :], values[:i] + values[i + 1 :], works[i]) for i in inner]
        by_grid = sum(abs(gap - values[i]) / values[i] for gap, i in zip(gaps, inner, strict=True)) / len(inner)
        if by_grid < mean_error(model, {s: t for s, t in points.items() if works[0] <= s.work <= works[-1]}):
            model = TokensLatency((a, b, c), tuple(works), tuple(values))
    return model, report(model, points, held_out)


def prefill_grid(points: Points) -> dict[int, float]:
    """Seconds by Σlen, from the shortest for as long as the seconds rise and do not depend on the composition.

    A grid knows the sum only: from where one long prompt and many short ones of the same sum differ by more
    than `SAME`, the coefficients serve.
    """
    by_work: dict[int, list[float]] = {}
    for shape, seconds in points.items():
        by_work.setdefault(shape.work, []).append(seconds)
    grid: dict[int, float] = {}
    last = 0.0
    for work in sorted(by_work):
        seen = by_work[work]
        value = median(seen)
        if max(seen) - min(seen) > SAME * value or value <= last:
            break
        grid[work] = last = value
    return grid


def fit_decode(points: Points, held_out: Points, noise: float = 0.0) -> tuple[ContextLatency, dict[str, Any]]:
    """`a(batch) + b·Σcontext`, with `a` on a grid over the measured batch sizes.

    Needs two contexts at one batch size at least. `noise` is the relative spread of the visits: dips of `a`
    within it are levelled. `coef[0]` is a(1), or that of the smallest batch.
    """
    shapes = list(points)
    sizes = sorted({shape.batch for shape in shapes})
    columns: list[list[float]] = [[1.0 if s.batch == size else 0.0 for s in shapes] for size in sizes]
    *bases, slope = solve([*columns, [s.context for s in shapes]], list(points.values()))
    floor = min(points.values()) * 1e-3  # a base of 0 is no latency; it comes from tiny models only
    bases, levelled = rising([max(base, floor) for base in bases], noise)
    model = ContextLatency((bases[0], slope), tuple(sizes), tuple(bases))
    return model, report(model, points, held_out) | {"levelled": levelled}


def fit_mixed(
    points: Mapping[MixedShape, float], held_out: Mapping[MixedShape, float]
) -> tuple[MixedLatency, dict[str, Any]]:
    """`base + per_token·n + square·attended + per_decode·decodes + per_context·read` by Huber's loss, and how good.

    n are all tokens of the step. Where the seconds are no line of n, a grid over n takes the place of its first two
    terms: what the other terms leave, levelled, if it predicts the inner entries from their neighbours better.
    """
    shapes, seconds = list(points), list(points.values())
    columns: list[list[float]] = [
        [1.0] * len(shapes),
        [s.work + s.decodes for s in shapes],
        [s.attended for s in shapes],
        [s.decodes for s in shapes],
        [s.read for s in shapes],
    ]
    base, per_token, square, per_decode, per_context = solve(columns, seconds)
    line = MixedLatency(base, per_token, square, per_decode, per_context)
    rest: dict[int, list[float]] = {}
    for shape, value in points.items():
        others = square * shape.attended + per_decode * shape.decodes + per_context * shape.read
        rest.setdefault(shape.work + shape.decodes, []).append(value - others)
    grid = {n: median(values) for n, values in sorted(rest.items()) if median(values) > 0}
    model = line
    if len(grid) > 3:
        tokens, values = tuple(grid), levelled(tuple(grid.values()))
        gridded = MixedLatency(base, per_token, square, per_decode, per_context, tokens, values)
        inner = range(1, len(tokens) - 1)
        gaps = [interpolate(tokens[:i] + tokens[i + 1 :], values[:i] + values[i + 1 :], tokens[i]) for i in inner]
        by_grid = sum(abs(gap - values[i]) / values[i] for gap, i in zip(gaps, inner, strict=True)) / len(gaps)
        by_line = sum(abs(line.predict(*s) - v) / v for s, v in points.items()) / len(points)
        model = gridded if by_grid < by_line else line
    errors = [abs(model.predict(*shape) - value) / value for shape, value in held_out.items()]
    mean = sum(seconds) / len(seconds)
    residual = sum((model.predict(*shape) - value) ** 2 for shape, value in points.items())
    total = sum((value - mean) ** 2 for value in seconds)
    return model, {
        "r2": round(1.0 - residual / total, 5) if total > 0 else None,
        "points": len(points),
        "held_out": len(held_out),
        "worst_relative_error": round(max(errors), 4) if errors else None,
        "median_relative_error": round(median(errors), 4) if errors else None,
    }


def fit_batch(
    points: Mapping[int, float], noise: float = 0.0, held_out: Mapping[int, float] | None = None
) -> tuple[BatchLatency, dict[str, Any]]:
    """Seconds by batch size as measured, with dips that are within `noise` levelled (`"levelled"` counts them).

    A real dip (a batch size that suits the hardware better) stays. The grid holds its own points exactly, so that
    only others can judge it: `held_out`, or without those every second size, predicted from the measured seconds of
    its neighbours alone. R² is that of these points too; None where there are fewer than two.
    """
    sizes = sorted(points)
    model, levelled = _grid(points, noise)
    unseen = {size: points[size] for size in sizes[1:-1:2]} if held_out is None else dict(held_out)
    judge = model
    if held_out is None:
        judge, _ = _grid({size: points[size] for size in sizes if size not in unseen}, noise)
    shapes = {Shape(size): seconds for size, seconds in unseen.items()}
    judged = report(judge, shapes, shapes) | {"points": len(points), "levelled": levelled}
    return model, judged if len(unseen) > 1 else judged | {"r2": None}


def _grid(points: Mapping[int, float], noise: float) -> tuple[BatchLatency, int]:
    """The grid through these points, and how many of them were levelled."""
    sizes = sorted(points)
    seconds, levelled = rising([points[size] for size in sizes], noise)
    return BatchLatency(tuple(sizes), tuple(seconds)), levelled


def rising(values: Sequence[float], noise: float) -> tuple[list[float], int]:
    """The values with dips within `noise` (relative) averaged away, and how many values that changed.

    Neighbours that fall by less are pooled to their mean until none is left (pool adjacent violators).
    """
    bound = max(noise, NOISE_FLOOR)
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1:
            before, after = (sum(pool) / len(pool) for pool in pools[-2:])
            if not 0 < before - after <= bound * before:
                break
            pools[-2:] = [pools[-2] + pools[-1]]
    result = [sum(pool) / len(pool) for pool in pools for _ in pool]
    return result, sum(abs(new - old) > 1e-12 * old for new, old in zip(result, values, strict=True))


def relative_errors(model: LatencyModel, points: Points) -> list[float]:
    """|predicted − measured| / measured of each point."""
    return [abs(model.predict(shape) - seconds) / seconds for shape, seconds in points.items()]


def mean_error(model: LatencyModel, points: Points) -> float:
    """Mean relative error; 0 where there are no points."""
    errors = relative_errors(model, points)
    return sum(errors) / len(errors) if errors else 0.0


def r_squared(predict: Callable[[Shape], float], points: Points) -> float:
    """1 − Σ(residual²) / Σ(deviation from the mean²), in seconds; 1 where all seconds are equal and predicted."""
    seconds = list(points.values())
    mean = sum(seconds) / len(seconds) if seconds else 0.0
    residual = sum((predict(shape) - s) ** 2 for shape, s in points.items())
    total = sum((s - mean) ** 2 for s in seconds)
    return 1.0 - residual / total if total > 0 else float(residual == 0)


def report(model: LatencyModel, points: Points, held_out: Points) -> dict[str, Any]:
    """How good a fit is: R² on `points`, relative errors on points that it has not seen."""
    errors = relative_errors(model, held_out)
    return {
        "r2": round(r_squared(model.predict, points), 5),
        "points": len(points),
        "held_out": len(held_out),
        "worst_relative_error": round(max(errors), 4) if errors else None,
        "median_relative_error": round(median(errors), 4) if errors else None,
    }
