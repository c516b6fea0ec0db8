"""Compare rules for whole workflows on the published settings and several seeds, in virtual time.

    python -m neusim.evaluating.workflows --tables DIR --seed artifact,201,202,203 --csv OUT

docs/workflows.md says what the rules are and what the figures mean.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from neusim.evaluating.kept import Kept
from neusim.evaluating.workflow_grid import (
    ARTIFACT,
    KEYS,
    Row,
    WorkflowGrid,
    parse_rule,
    parse_setting,
    run_workflows,
)
from neusim.evaluating.workflow_report import by_setting, ratios, to_csv, what_binds
from neusim.sim.workflow_setup import make_scenario
from neustream.catalog.workflows import WORKFLOWS
from neustream.cli.arguments import Parser, above, names, numbers, whole
from neustream.files import check_writable, write_atomically

RULES = (
    "lookahead:neustream:late:pooled",
    "lookahead:neustream:late:dedicated",
    "carry:slack:late:pooled",
    "carry:slack:roundrobin:dedicated",
    "carry:neustream:roundrobin:dedicated",
    "carry:artifact:roundrobin:dedicated",
)
SETTINGS = (
    *("0.6/1/1.8", "0.7/1/1.8", "0.8/1/1.8", "0.9/1/1.8", "1/1/1.8"),
    *("0.7/2/1.8", "0.7/3/1.8", "0.7/4/1.8", "0.7/1/1.2", "0.7/1/1.4", "0.7/1/1.6"),
)
"""The artifact's sweeps: of the rate, of the spread of the gaps, of the SLO."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="neusim.evaluating.workflows", description=(__doc__ or "").split("\n")[0])
    add = result.add_argument
    add("--workflow", default="plot", metavar="NAME", help=f"{', '.join(WORKFLOWS)} (default plot)")
    add("--tables", type=Path, required=True, help="the artifact's folder, or one with <device>/<model>.json")
    add("--device", help="whose tables: a folder of --tables")
    add("--revise-lengths", choices=("code", "vision"), default="code", help="assumed, since they are not recorded")
    add("--rule", type=names, default=RULES, metavar="R,…", help="BUDGET:POLICY:late|roundrobin:dedicated|pooled")
    add("--ours", metavar="R", help="the rule that is put over the others (default: the first of --rule)")
    add("--setting", type=names, default=SETTINGS, metavar="S,…", help="RATE/CV/SCALE (default: as published)")
    add("--seed", type=names, default=(ARTIFACT,), metavar="N,…", help="of the arrivals: numbers, or artifact")
    add("--deadline", type=numbers(above(0)), metavar="S", help="one for all, s (default: sum of the stages')")
    add("--requests", type=whole(1), metavar="N", help="workflows per run (default: the trace's, or 300)")
    add("--csv", type=Path, metavar="FILE", help="write a line per run")
    add("--resume", action="store_true", help="go on with the runs of --csv FILE that an interruption left")
    add("--processes", type=whole(1), default=os.cpu_count() or 1, metavar="N", help="worker processes")
    return result


def make_grid(options: argparse.Namespace) -> WorkflowGrid:
    """Check everything that was asked for. Raises ValueError, one line."""
    for seed in options.seed:
        if seed != ARTIFACT and not seed.isdecimal():
            raise ValueError(f"--seed takes whole numbers and {ARTIFACT}, got {seed!r}")
    if options.deadline is not None and len(options.deadline) > 1:
        raise ValueError("--deadline takes one number here")
    if options.ours is not None and options.ours not in options.rule:
        raise ValueError(f"--ours {options.ours} is none of --rule")
    if options.resume and options.csv is None:
        raise ValueError("--resume needs --csv FILE")
    scenario = make_scenario(
        options.workflow,
        options.tables,
        options.device,
        revise_from=options.revise_lengths,
        num=options.requests,
    )
    grid = WorkflowGrid(
        scenario,
        options.revise_lengths,
        tuple(parse_rule(text) for text in options.rule),
        tuple(parse_setting(text) for text in options.setting),
        tuple(options.seed),
        options.deadline[0] if options.deadline else None,
    )
    grid.check()
    if options.csv is not None:
        check_writable(options.csv, "--csv")
    return grid


def show(rows: Sequence[Row], ours: str) -> None:
    """Print the figures."""
    print("workflows in time, mean of the seeds, by rate/cv/SLO scale")
    print(by_setting(rows, "good"), end="\n\n")
    print("of these, no stage was late either (the artifact's criterion)")
    print(by_setting(rows, "stages_in_time"), end="\n\n")
    if len({row["rule"] for row in rows}) > 1:
        print(f"in time: {ours} over the others")
        print(ratios(rows, ours), end="\n\n")
    print("means over all runs; tokens in time per second of each node")
    print(what_binds(rows))


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    command = parser()
    options = command.parse_args(argv)
    try:
        grid = make_grid(options)
        kept = Kept(options.csv, resume=options.resume, keys=KEYS)
    except ValueError as error:
        command.error(str(error))
    try:
        with tqdm(total=len(grid.tasks), unit="run") as bar:
            rows = run_workflows(grid, options.processes, bar.update, kept)
    except KeyboardInterrupt:
        if kept.path is not None:
            print(f"what is done is in {kept.path}; --resume goes on from there", file=sys.stderr)
        return 130
    show(rows, options.ours or options.rule[0])
    if options.csv is not None:
        write_atomically(options.csv, to_csv(rows))
        kept.discard()
    return 0


if __name__ == "__main__":
    sys.exit(main())
