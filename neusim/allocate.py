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

from tqdm import tqdm

from neusim.allocating.search import Search
from neusim.sim.workflow_command import add_scenario_flags, scenario_of
from neustream.cli.arguments import Parser, above, at_least, between, numbers, whole
from neustream.workflow.budget import make_budget
from neustream.workload.arrivals import LEAST_CV, MOST_CV


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="allocate.py", description=(__doc__ or "").split("\n")[0])
    add_scenario_flags(result)
    add = result.add_argument
    add("--devices", type=whole(1), required=True, metavar="N", help="devices to give out, one a replica")
    add("--rate", type=numbers(above(0)), required=True, metavar="R", help="workflows/s")
    add("--cv", type=numbers(between(LEAST_CV, MOST_CV)), default=(1.0,), metavar="C", help="spread of gaps (1)")
    add("--slo-scale", type=numbers(at_least(1)), default=(1.8,), metavar="S", help="× standalone latency (1.8)")
    add("--deadline", type=numbers(above(0)), metavar="S", help="one for all, s (default: sum of the stages')")
    add("--policy", default="neustream", help="of the replicas (default neustream)")
    add("--budget", default="lookahead", help="budget rule (default lookahead)")
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
    )
    search.start(is_pooled=scenario.is_pooled)
    return search


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    command = parser()
    options = command.parse_args(argv)
    try:
        search = make_search(options)
    except ValueError as error:
        command.error(str(error))
    try:
        with tqdm(unit="plan") as bar:
            search.on_run = lambda plan, good: bar.update()
            best = search.run()
    except KeyboardInterrupt:
        return 130
    num = search.scenario.num
    print(f"tried, with the same {num} workflows each:")
    for plan, good in search.tried.items():
        print(f"  {good:4} in time: {plan}")
    _, capacity = search.start(is_pooled=best.is_pooled)
    print(f"plan: {best}: {search.good(best)} of {num} in time")
    print(f"bound: no split has a fluid capacity above {capacity:.3f} workflows/s; asked for are {search.rate:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
