"""Compare policies on windows of real traffic, with hidden output lengths, in virtual time.

    python -m neusim.evaluating --tables DIR --traces DIR --trace azure-conv,azure-code --slo A,B,C \\
        --load 0.5,0.9,1.1 --windows 3 --policy fcfs,slack --csv OUT

docs/traffic.md says what a cell is and what the figures mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from neusim.evaluating.command import FIGURES, add_cell_flags, make_grid
from neusim.evaluating.grid import Grid, Row, run_grid
from neusim.evaluating.kept import Kept
from neusim.evaluating.policies import parse_policy
from neusim.evaluating.report import against_peers, highest_loads, shares_by_load, to_csv
from neustream.cli.arguments import Parser, names
from neustream.files import check_writable, write_atomically


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="neusim.evaluating", description=(__doc__ or "").split("\n")[0])
    add_cell_flags(result, part="test", windows=3)
    add = result.add_argument
    add("--policy", type=names, default=("fcfs", "neustream", "slack"), metavar="P,…", help="NAME[:option=value…]")
    add("--figure", choices=(*FIGURES, "all"), default="all", help="which figure to print (default all)")
    add("--ours", metavar="P", help="also this policy against the best of the others in each cell, paired by window")
    add("--csv", type=Path, metavar="FILE", help="write a line per cell and policy")
    add("--resume", action="store_true", help="go on with the runs of --csv FILE that an interruption left")
    return result


def asked_grid(options: argparse.Namespace) -> Grid:
    """The grid; raises ValueError, one line, for what cannot be."""
    policies = tuple(parse_policy(text) for text in options.policy)
    if options.ours is not None and (options.ours not in options.policy or len(policies) < 2):
        raise ValueError(f"--ours {options.ours} must be one of several in --policy")
    if options.resume and options.csv is None:
        raise ValueError("--resume needs --csv FILE")
    grid = make_grid(options, policies)
    if options.csv is not None:
        check_writable(options.csv, "--csv")
    return grid


def show(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Print the figures that were asked for."""
    for figure in FIGURES if options.figure == "all" else (options.figure,):
        print(f"{FIGURES[figure]}, by load")
        print(shares_by_load(rows, figure), end="\n\n")
        if options.ours is not None:
            print(against_peers(rows, options.ours, figure), end="\n\n")
    if len(options.load) > 1:
        print("the highest load with 90 % of the requests good, between those that were run")
        print(highest_loads(rows, "good_share", 0.9), end="\n\n")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    command = parser()
    options = command.parse_args(argv)
    try:
        grid = asked_grid(options)
        kept = Kept(options.csv, resume=options.resume)
    except ValueError as error:
        command.error(str(error))
    try:
        with tqdm(total=grid.num_tasks, unit="run") as bar:
            rows = run_grid(grid, processes=options.processes, on_done=bar.update, kept=kept)
    except KeyboardInterrupt:
        if kept.path is not None:
            print(f"what is done is in {kept.path}; --resume goes on from there", file=sys.stderr)
        return 130
    show(rows, options)
    if options.csv is not None:
        write_atomically(options.csv, to_csv(rows))
        kept.discard()
    return 0


if __name__ == "__main__":
    sys.exit(main())
