"""Does by-layers agree with the whole model? `python -m neusim.profiling.check_layers opt-125m 2,4`.

One engine holds the whole model and runs it at both small depths and at the full one, in the same interleaved
passes, so that what the machine does meanwhile is in all three. Interrupted, it resumes like a profile.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import gettempdir

from neusim.profiling.depth import extrapolate
from neusim.profiling.grid import Point, llm_points
from neusim.profiling.llm import check
from neusim.profiling.measure import measure, trusted
from neusim.profiling.settings import SettingsError, make_settings, parse_layers
from neusim.profiling.visits import Partial
from neusim.profiling.vllm_timer import EngineTimer, load_engine
from neustream.cli.arguments import Parser

SECONDS = 4.0
"""What a point may take: more than in a quick profile, since single points are judged here."""
REPEATS = 9
AGREES = 0.1
"""Points that differ by more are listed."""


def differences(
    by_depth: Sequence[Mapping[Point, float]], layers: tuple[int, int], num_layers: int
) -> dict[Point, float]:
    """By-layers / whole − 1 of each point that all three depths have: `by_depth` is shallow, deep, whole."""
    common = set.intersection(*(set(seconds) for seconds in by_depth))
    shallow, deep, whole = ({p: s for p, s in seconds.items() if p in common} for seconds in by_depth)
    full = extrapolate(shallow, deep, layers, num_layers)
    return {point: full[point] / whole[point] - 1 for point in full}


def parser() -> Parser:
    """The command line."""
    result = Parser(prog="check_layers", description=(__doc__ or "").split("\n")[0])
    result.add_argument("model", help="a model that fits this machine")
    result.add_argument("layers", nargs="?", default="2,4", metavar="A,B", help="two depths (default 2,4)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print of each module the mean and the median size of the differences, and which are large."""
    options = parser().parse_args(argv)
    try:
        layers = parse_layers(options.layers)
        visited = Path(gettempdir()) / f"check-layers-{Path(options.model).name}"
        settings, _ = make_settings(options.model, quick=True, out=visited)
        model, dtype, plan = check(settings)
        if plan.layers or layers[1] >= model.num_layers:
            raise SettingsError(f"{plan.reason}; by layers is checked on a model that fits and is deeper than {layers}")
        timer = EngineTimer(load_engine(model, settings, dtype, plan), model.vocabulary)
    except SettingsError as error:
        print(f"check_layers: {error}", file=sys.stderr)
        return 2
    points = llm_points(quick=True, max_len=1100, max_tokens=min(32768, timer.cache_tokens))
    depths = (*layers, model.num_layers)
    kept = Partial(visited, {"model": model.name, "depths": depths, "dtype": dtype})
    visits = measure(
        [point.at(depth) for point in points for depth in depths],
        timer.run,
        repeats=REPEATS,
        seconds_per_point=SECONDS,
        partial=kept,
        label=model.name,
    )
    by_depth = [trusted({point: visits[point.at(depth)] for point in points}) for depth in depths]
    kept.discard()
    found = differences(by_depth, layers, model.num_layers)
    for module in ("prefill", "decode"):
        mine = {point: by for point, by in found.items() if point.module == module}
        mean, size = sum(mine.values()) / len(mine), median(map(abs, mine.values()))
        far = sorted((point for point in mine if abs(mine[point]) > AGREES), key=lambda point: -abs(mine[point]))
        print(f"{module}: by layers / whole: mean {mean:+.1%}, median size {size:.1%}; ", end="")
        print(f"{len(mine) - len(far)} of {len(mine)} points within {AGREES:.0%}")
        for point in far:
            print(f"    {mine[point]:+.1%} {point.at(model.num_layers)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes")
