"""Compare policies on windows of real traffic, with hidden output lengths, in virtual time.

    python -m neusim.evaluating --tables DIR --traces DIR --trace azure-conv,azure-code --slo A,B,C \\
        --load 0.5,0.9,1.1 --windows 3 --policy fcfs,slack --csv OUT

docs/traffic.md says what a cell is and what the figures mean.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tqdm import tqdm

from neusim.evaluating.cell import Cell
from neusim.evaluating.grid import Grid, run_grid
from neusim.evaluating.policies import parse_policy
from neusim.evaluating.report import against_peers, shares_by_load, to_csv
from neusim.evaluating.traffic import MAX_TOKENS, NUM_REQUESTS, load_traffic
from neustream.cli.arguments import Parser, above, at_least, names, numbers, whole
from neustream.cli.paths import TABLES
from neustream.files import check_writable, write_atomically
from neustream.policies import is_llm
from neustream.tables import find_table

FIGURES = {
    "good_share": "requests with every token on time, per cent of all that came",
    "token_share": "tokens on time, per cent of all that were wanted",
    "attained_share": "requests with TTFT and mean TPOT within the SLO, as vLLM counts, per cent",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="neusim.evaluating", description=(__doc__ or "").split("\n")[0])
    add = result.add_argument
    add("--device", default="a6000", help="whose latency tables (default a6000)")
    add("--model", type=names, default=("opt-13b",), metavar="M,…", help="which models' tables (default opt-13b)")
    add("--tables", type=Path, default=TABLES, help="folder with <device>/<model>.json (default neusim/tables)")
    add("--traces", type=Path, default=Path(), metavar="DIR", help="folder with the traces' files (default .)")
    add("--trace", type=names, default=("azure-conv", "azure-code"), metavar="T,…", help="by name, or a trace file")
    add("--slo", type=names, default=("A", "B", "C"), metavar="S,…", help="kinds of SLO (default A,B,C)")
    add("--load", type=numbers(above(0)), default=(0.5, 0.9, 1.1), metavar="L,…", help="× capacity (0.5,0.9,1.1)")
    add("--windows", type=whole(1), default=3, metavar="N", help="windows of each trace (default 3)")
    add("--part", choices=("test", "train"), default="test", help="which windows (default test)")
    add("--requests", type=whole(2), default=NUM_REQUESTS, metavar="N", help=f"of a window (default {NUM_REQUESTS})")
    add("--max-tokens", type=whole(1), default=MAX_TOKENS, metavar="N", help=f"asked for (default {MAX_TOKENS})")
    add("--policy", type=names, default=("fcfs", "neustream", "slack"), metavar="P,…", help="NAME[:option=value…]")
    add("--slowness", type=numbers(above(0)), default=(1.0,), metavar="X", help="steps take X times the table's time")
    add("--jitter", type=numbers(at_least(0)), default=(0.0,), metavar="J", help="relative spread of steps' seconds")
    add("--seed", type=whole(0), default=0, help="of classes and jitter (default 0)")
    add("--oracle", action="store_true", help="an analysis: policies know the true lengths")
    add("--prefix-cache", action=argparse.BooleanOptionalAction, default=True, help="share the prompts' common blocks")
    add("--figure", choices=(*FIGURES, "all"), default="all", help="which figure to print (default all)")
    add("--ours", metavar="P", help="also this policy against the best of the others in each cell, paired by window")
    add("--csv", type=Path, metavar="FILE", help="write a line per cell and policy")
    add("--processes", type=whole(1), default=os.cpu_count() or 1, metavar="N", help="worker processes")
    return result


def make_grid(options: argparse.Namespace) -> Grid:
    """Check everything that was asked for; raises ValueError saying what is wrong."""
    for name in ("slowness", "jitter"):
        if len(getattr(options, name)) > 1:
            raise ValueError(f"--{name} takes one number")
    if not options.tables.is_dir():
        raise ValueError(f"--tables {options.tables} is not a folder")
    tables = tuple(find_table(options.tables, options.device, model) for model in options.model)
    for table in tables:
        if not is_llm(table):
            raise ValueError(f"--model {table.model} is an image pipeline; cells are of language models")
    traffic = tuple(
        window
        for name in options.trace
        for window in load_traffic(name, options.traces, options.windows, options.part, options.requests)
    )
    pattern = Cell(
        tables[0],
        traffic[0],
        max_tokens=options.max_tokens,
        slowness=options.slowness[0],
        jitter=options.jitter[0],
        seed=options.seed,
        knows_lengths=options.oracle,
        device={} if options.prefix_cache else {"prefix_cache": False},
    )
    pattern.make_device()
    policies = tuple(parse_policy(text) for text in options.policy)
    if options.ours is not None and (options.ours not in options.policy or len(policies) < 2):
        raise ValueError(f"--ours {options.ours} must be one of several in --policy")
    grid = Grid(pattern, tables, traffic, options.slo, options.load, policies)
    grid.check()
    return grid


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    command = parser()
    options = command.parse_args(argv)
    try:
        grid = make_grid(options)
        if options.csv is not None:
            check_writable(options.csv, "--csv")
    except ValueError as error:
        command.error(str(error))
    try:
        with tqdm(total=grid.num_tasks, unit="run") as bar:
            rows = run_grid(grid, processes=options.processes, on_done=bar.update)
    except KeyboardInterrupt:
        return 130
    for figure in FIGURES if options.figure == "all" else (options.figure,):
        print(f"{FIGURES[figure]}, by load")
        print(shares_by_load(rows, figure), end="\n\n")
        if options.ours is not None:
            print(against_peers(rows, options.ours, figure), end="\n\n")
    if options.csv is not None:
        write_atomically(options.csv, to_csv(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
