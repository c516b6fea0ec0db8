"""How far two tables of a model are apart: `python -m neusim.profiling.compare direct.json by-layers.json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from neusim.profiling.points import llm_points
from neustream.latency import Shape
from neustream.tables import LatencyTable, TableError, load_table


def differences(first: LatencyTable, second: LatencyTable) -> dict[str, list[tuple[Shape, float]]]:
    """Per module, second / first − 1 at the points of the quick grid, held-out ones included."""
    result: dict[str, list[tuple[Shape, float]]] = {}
    for point in llm_points(quick=True, max_len=2000):
        ratio = second[point.module].predict(point.shape) / first[point.module].predict(point.shape)
        result.setdefault(point.module, []).append((point.shape, ratio - 1))
    return result


def main(paths: Sequence[str]) -> int:
    """Print the mean, the median size and the worst of the differences of each module."""
    if len(paths) != 2:
        print("compare: give two tables of one language model", file=sys.stderr)
        return 2
    try:
        first, second = (load_table(path) for path in paths)
        if first.model != second.model:
            raise TableError(f"{paths[1]}: model is {second.model!r}, expected {first.model!r}")
        by_module = differences(first, second)
    except TableError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    for module, rows in by_module.items():
        worst, by = max(rows, key=lambda row: abs(row[1]))
        sizes = sorted(abs(by) for _, by in rows)
        mean = sum(by for _, by in rows) / len(rows)
        print(
            f"{module}: mean {mean:+.1%}, median size {sizes[len(sizes) // 2]:.1%}, "
            f"worst {by:+.1%} at batch {worst.batch}, Σ length {worst.context}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
