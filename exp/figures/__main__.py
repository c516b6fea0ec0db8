"""`python -m exp.figures`: all figures, simulated from latency tables or, with --runs, of real runs."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from exp.figures.simulated import Plan, make_plan, pick_pairs, run_plan
from exp.figures.study import Study
from neustream.cli.arguments import BadInput, Parser, exit_code_for, names, whole
from neustream.cli.paths import FIGURES, TABLES
from neustream.files import write_atomically
from neustream.policies import POLICIES
from neustream.tables import TableError

QUICK_REQUESTS = 60


def parser() -> Parser:
    """The command line."""
    result = Parser(prog="exp.figures", description=(__doc__ or "").split(": ", 1)[1])
    add = result.add_argument
    add("--out", type=Path, default=FIGURES, metavar="DIR", help="where the figures go (default figures/)")
    add("--runs", nargs="+", metavar="DIR", help="draw these real runs (folders or names in runs/), simulate none")
    add("--force", action="store_true", help="draw --runs together that differ in more than policy and settings")
    add("--models", type=names, default=(), metavar="M,…", help="models, or device/model (default: the paper's)")
    add("--tables", type=Path, default=TABLES, metavar="DIR", help="latency tables to use")
    add("--policy", type=names, default=(), metavar="P,…", help="step policies (default: all but peers)")
    add("--published", action="store_true", help="the paper's request rates (default: multiples of the capacity)")
    add("--requests", type=whole(1), metavar="N", help="requests per simulated run (default 500)")
    add("--seed", type=whole(0), default=0, help="of the workload: arrivals, step counts, prompts (default 0)")
    add("--processes", type=whole(1), default=os.cpu_count() or 1, metavar="N", help="worker processes")
    add("--quick", action="store_true", help="two models, few settings, small runs: to see that it works")
    return result


def make_plans(options: argparse.Namespace) -> list[Plan]:
    """What is to be simulated, all of it checked. Raises BadInput."""
    if not options.tables.is_dir():
        raise BadInput(f"--tables {options.tables} is not a folder")
    policies = options.policy
    for policy in policies:
        if policy not in POLICIES:
            raise BadInput(f"unknown policy {policy!r}; there are {', '.join(POLICIES)}")
    count = options.requests or (QUICK_REQUESTS if options.quick else 500)
    pairs = pick_pairs(options.tables, options.models, quick=options.quick)
    try:
        how = {"quick": options.quick, "published": options.published}
        return [make_plan(options.tables, pair, policies, count, options.seed, **how) for pair in pairs]
    except TableError as error:
        raise BadInput(str(error)) from error


def simulated_studies(plans: list[Plan], processes: int) -> Iterator[Study]:
    """Simulate plan after plan, with one progress bar for all."""
    with tqdm(total=sum(plan.num_tasks for plan in plans), unit="run", leave=False, disable=None) as bar:

        def on_done() -> None:
            bar.update()

        for plan in plans:
            bar.set_description(f"{plan.sweep.table.model} on {plan.sweep.table.device}")
            yield run_plan(plan, processes, on_done)


def write_figures(options: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    if options.runs:
        from exp.figures.recorded import read_studies  # pandas and pydantic: only where runs are read

        studies = iter(read_studies(options.runs, force=options.force))
    else:
        studies = simulated_studies(make_plans(options), options.processes)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write the output folder {options.out}: {error.strerror}") from error
    if not os.access(options.out, os.W_OK):
        raise BadInput(f"cannot write the output folder {options.out}")
    from exp.figures.draw import draw_all  # takes a second to import: after all checks

    for study in studies:
        files = [path.name for path in draw_all(study, options.out)]
        rows = {axis: list(panel) for axis, panel in study.panels.items()}
        data = options.out / f"goodput-{study.name}.json"
        write_atomically(data, json.dumps({"origin": study.origin, "panels": rows}, indent=1) + "\n")
        tqdm.write(f"{study.model} on {study.device}, {study.origin}: {', '.join(files)}")
    print(f"figures are in {options.out}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command."""
    command = parser()
    options = command.parse_args(argv)
    return exit_code_for(command, lambda: write_figures(options))


if __name__ == "__main__":
    sys.exit(main())
