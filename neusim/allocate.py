"""Find how many devices each pool of a workflow gets, by simulated goodput from an exact model's start.

    python neusim/allocate.py --workflow plot --tables DIR --devices 4 --rate 0.8

docs/allocation.md says how it searches.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from neusim.allocating.figure import Point, draw
from neusim.allocating.search import Search
from neusim.sim.workflow_command import add_scenario_flags, scenario_of
from neustream.cli.arguments import Parser, above, at_least, between, numbers, whole
from neustream.files import check_writable
from neustream.workflow.budget import make_budget
from neustream.workload.arrivals import LEAST_CV, MOST_CV


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="allocate.py", description=(__doc__ or "").split("\n")[0])
    add_scenario_flags(result)
    add = result.add_argument
    add("--devices", type=whole(1), required=True, metavar="N", help="devices to give out")
    add("--rate", type=numbers(above(0)), required=True, metavar="R", help="workflows/s")
    add("--cv", type=numbers(between(LEAST_CV, MOST_CV)), default=(1.0,), metavar="C", help="spread of gaps (1)")
    add("--slo-scale", type=numbers(at_least(1)), default=(1.8,), metavar="S", help="× standalone latency (1.8)")
    add("--deadline", type=numbers(above(0)), metavar="S", help="one for all, s (default: sum of the stages')")
    add("--policy", default="neustream", help="of the replicas (default neustream)")
    add("--budget", default="lookahead", help="budget rule (default lookahead)")
    add("--spread", action=argparse.BooleanOptionalAction, default=True, help="try replicas of several devices too")
    add("--figure", type=Path, metavar="FILE", help="draw goodput against devices, up to --devices (.png, .svg, .pdf)")
    add("--processes", type=whole(1), default=os.cpu_count() or 1, metavar="N", help="worker processes")
    return result


def make_search(options: argparse.Namespace) -> Search:
    """Check everything that was asked for. Raises ValueError, one line."""
    for name in ("rate", "cv", "slo_scale", "deadline"):
        if getattr(options, name) is not None and len(getattr(options, name)) > 1:
            raise ValueError(f"--{name.replace('_', '-')} takes one number here")
    scenario = scenario_of(options)
    scenario.check_policy(options.policy)
    make_budget(options.budget)
    search = Search(
        scenario,
        options.devices,
        rate=options.rate[0],
        cv=options.cv[0],
        scale=options.slo_scale[0],
        budget=options.budget,
        policy=options.policy,
        seed=options.seed,
        deadline=options.deadline[0] if options.deadline else None,
        may_spread=options.spread,
        processes=options.processes,
    )
    search.check()
    if options.figure is not None:
        if options.figure.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--figure FILE must end in .png, .svg or .pdf, got {options.figure}")
        check_writable(options.figure, "--figure")
    return search


def points(search: Search, best: Point) -> list[Point]:
    """What fewer devices give, each with the best plan that is found for so many; and the best of all of them."""
    found = []
    for devices in range(search.least_devices, search.devices):
        fewer = replace(search, devices=devices, tried={}, screened={})
        plan = fewer.run()
        found.append(Point(devices, fewer.good(plan) / search.scenario.num, fewer.capacity(plan), str(plan)))
    return [*found, best]


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    command = parser()
    options = command.parse_args(argv)
    try:
        search = make_search(options)
    except ValueError as error:
        command.error(str(error))
    num = search.scenario.num
    try:
        with tqdm(unit="plan") as bar:
            search.on_run = lambda plan, good: bar.update()
            best = search.run()
            capacity = search.capacity(best)
            if options.figure is not None:
                point = Point(search.devices, search.good(best) / num, capacity, str(best))
                draw(points(search, point), search.rate, options.figure)
    except KeyboardInterrupt:
        return 130
    print(f"tried, with the same {num} workflows each:")
    for plan, good in search.tried.items():
        print(f"  {good:4} in time: {plan}")
    print(f"plan: {best}: {search.good(best)} of {num} in time")
    print(
        f"bound: no split with one device a replica has a fluid capacity above {capacity:.3f} workflows/s; "
        f"asked for are {search.rate:g}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
