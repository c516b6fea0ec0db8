"""Try a policy's constants on training windows: every combination of a small grid, the best first.

    python -m neusim.evaluating.tune --policy qoserve --grid alpha=0.002,0.008 --grid late_hold=true,false \\
        --traces DIR --trace azure-conv,azure-code --slo A,C --load 0.7,1.1

No test window shares a request with a training window (docs/traffic.md).
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from neusim.evaluating.cell import Cell
from neusim.evaluating.grid import Grid, run_grid
from neusim.evaluating.policies import PolicySpec, parse_policy
from neusim.evaluating.traffic import MAX_TOKENS, NUM_REQUESTS, load_traffic
from neustream.cli.arguments import Parser, above, at_least, names, numbers, whole
from neustream.cli.paths import TABLES
from neustream.cli.report import Column, Row, format_table, text
from neustream.policies import is_llm
from neustream.tables import find_table

MOST_COMBINATIONS = 200
FIGURES = ("good_share", "token_share", "attained_share")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="neusim.evaluating.tune", description=(__doc__ or "").split("\n")[0])
    add = result.add_argument
    add("--policy", required=True, metavar="P", help="NAME[:option=value…]; what the grid does not name stays so")
    add("--grid", action="append", required=True, metavar="K=V,…", help="an option and its values; may be repeated")
    add("--figure", choices=FIGURES, default="good_share", help="what is to be largest in the mean (good_share)")
    add("--device", default="a6000", help="whose latency tables (default a6000)")
    add("--model", type=names, default=("opt-13b",), metavar="M,…", help="which models' tables (default opt-13b)")
    add("--tables", type=Path, default=TABLES, help="folder with <device>/<model>.json (default neusim/tables)")
    add("--traces", type=Path, default=Path(), metavar="DIR", help="folder with the traces' files (default .)")
    add("--trace", type=names, default=("azure-conv", "azure-code"), metavar="T,…", help="by name, or a trace file")
    add("--slo", type=names, default=("A", "B", "C"), metavar="S,…", help="kinds of SLO (default A,B,C)")
    add("--load", type=numbers(above(0)), default=(0.7, 1.1), metavar="L,…", help="× capacity (default 0.7,1.1)")
    add("--windows", type=whole(1), default=2, metavar="N", help="training windows of each trace (default 2)")
    add("--requests", type=whole(2), default=NUM_REQUESTS, metavar="N", help=f"of a window (default {NUM_REQUESTS})")
    add("--max-tokens", type=whole(1), default=MAX_TOKENS, metavar="N", help=f"asked for (default {MAX_TOKENS})")
    add("--slowness", type=numbers(above(0)), default=(1.0,), metavar="X,…", help="steps take X times as long")
    add("--jitter", type=numbers(at_least(0)), default=(0.0,), metavar="J", help="relative spread of steps' seconds")
    add("--processes", type=whole(1), default=os.cpu_count() or 1, metavar="N", help="worker processes")
    return result


def combinations(policy: str, grid: Sequence[str]) -> list[PolicySpec]:
    """The policy under every combination of the options' values.

    `grid` has an `option=value,value…` for each. Raises ValueError, one line, for what is no such thing.
    """
    base = parse_policy(policy)
    axes: dict[str, list[PolicySpec]] = {}
    for item in grid:
        key, separator, values = item.partition("=")
        if not separator or not key or not all(values.split(",")):
            raise ValueError(f"--grid {item!r}: expected option=value,value…")
        if key in axes or key in base.options:
            raise ValueError(f"--grid {item!r}: {key} is given twice")
        axes[key] = [parse_policy(f"{base.name}:{key}={value}") for value in dict.fromkeys(values.split(","))]
    specs = [
        PolicySpec(base.name, {**base.options, **{k: v for one in chosen for k, v in one.options.items()}})
        for chosen in itertools.product(*axes.values())
    ]
    if len(specs) > MOST_COMBINATIONS:
        raise ValueError(f"--grid has {len(specs)} combinations, at most {MOST_COMBINATIONS} are tried")
    return specs


def make_grids(options: argparse.Namespace) -> list[Grid]:
    """One grid for each slowness. Raises ValueError, one line, for anything that cannot be."""
    if len(options.jitter) > 1:
        raise ValueError("--jitter takes one number")
    if not options.tables.is_dir():
        raise ValueError(f"--tables {options.tables} is not a folder")
    tables = tuple(find_table(options.tables, options.device, model) for model in options.model)
    for table in tables:
        if not is_llm(table):
            raise ValueError(f"--model {table.model} is an image pipeline; cells are of language models")
    policies = tuple(combinations(options.policy, options.grid))
    traffic = tuple(
        window
        for name in options.trace
        for window in load_traffic(name, options.traces, options.windows, "train", options.requests)
    )
    grids = []
    for slowness in options.slowness:
        pattern = Cell(
            tables[0], traffic[0], max_tokens=options.max_tokens, slowness=slowness, jitter=options.jitter[0]
        )
        pattern.make_device()
        grid = Grid(pattern, tables, traffic, options.slo, options.load, policies)
        grid.check()
        grids.append(grid)
    return grids


def ranking(rows: Sequence[Row], figure: str) -> str:
    """A line per combination, best first: the mean over all cells, by trace and SLO kind, and the worst ratio.

    A cell's ratio is to the best combination there, so the worst one says what a combination gives away at most.
    """
    cell = ["device", "model", "trace", "window", "slo", "load", "slowness"]
    frame = pd.DataFrame([{key: row[key] for key in (*cell, "policy", figure)} for row in rows])
    best = frame.groupby(cell)[figure].transform("max")
    frame["ratio"] = (frame[figure] / best).where(best > 0, 1.0)
    lines = []
    for name, part in frame.groupby("policy", sort=False):
        line: dict[str, str] = {"policy": str(name)}
        for (trace, slo), values in part.groupby(["trace", "slo"], sort=False)[figure]:
            line[f"{trace} {slo}"] = f"{100 * values.mean():.1f}"
        line["mean"] = f"{100 * part[figure].mean():.2f}"
        line["mean ratio"] = f"{part['ratio'].mean():.3f}"
        line["worst ratio"] = f"{part['ratio'].min():.3f}"
        lines.append(line)
    lines.sort(key=lambda line: -float(line["mean"]))
    return format_table(lines, [Column(heading, text(heading)) for heading in lines[0]])


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    command = parser()
    options = command.parse_args(argv)
    try:
        grids = make_grids(options)
    except ValueError as error:
        command.error(str(error))
    rows = []
    try:
        with tqdm(total=sum(grid.num_tasks for grid in grids), unit="run") as bar:
            for grid in grids:
                rows += run_grid(grid, processes=options.processes, on_done=bar.update)
    except KeyboardInterrupt:
        return 130
    windows = ", ".join(f"{window.name} {window.window}" for window in grids[0].traffic)
    print(f"training windows: {windows}\n{options.figure}, per cent of all that came, means over cells")
    print(ranking(rows, options.figure))
    return 0


if __name__ == "__main__":
    sys.exit(main())
