"""The flags that say which cells are run, and the grid that they come to."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from neusim.evaluating.cell import Cell
from neusim.evaluating.grid import Grid
from neusim.evaluating.policies import PolicySpec
from neusim.evaluating.traffic import MAX_TOKENS, NUM_REQUESTS, Part, load_traffic
from neustream.cli.arguments import Check, above, at_least, names, numbers, whole
from neustream.cli.paths import TABLES
from neustream.policies import is_llm
from neustream.tables import find_table

FIGURES = {
    "good_share": "requests with every token on time, per cent of all that came",
    "token_share": "tokens on time, per cent of all that were wanted",
    "attained_share": "requests with TTFT and mean TPOT within the SLO, as vLLM counts, per cent",
}


def one(check: Check) -> Callable[[str], float]:
    """An argparse type: a single number that passes the check."""
    several = numbers(check)

    def parse(text: str) -> float:
        values = several(text)
        if len(values) > 1:
            raise argparse.ArgumentTypeError(f"takes one number, got {text}")
        return values[0]

    return parse


def add_cell_flags(parser: argparse.ArgumentParser, *, part: Part, windows: int) -> None:
    """Add the flags of cells; `part` and `windows` are the defaults of which windows, and how many."""
    add = parser.add_argument
    add("--device", default="a6000", help="whose latency tables (default a6000)")
    add("--model", type=names, default=("opt-13b",), metavar="M,…", help="which models' tables (default opt-13b)")
    add("--tables", type=Path, default=TABLES, help="folder with <device>/<model>.json (default neusim/tables)")
    add("--traces", type=Path, default=Path(), metavar="DIR", help="folder with the traces' files (default .)")
    add("--trace", type=names, default=("azure-conv", "azure-code"), metavar="T,…", help="by name, or a trace file")
    add("--slo", type=names, default=("A", "B", "C"), metavar="S,…", help="kinds of SLO (default A,B,C)")
    add("--load", type=numbers(above(0)), default=(0.5, 0.9, 1.1), metavar="L,…", help="× capacity (0.5,0.9,1.1)")
    add("--windows", type=whole(1), default=windows, metavar="N", help=f"of each trace (default {windows})")
    add("--part", choices=("test", "train"), default=part, help=f"which windows (default {part})")
    add("--requests", type=whole(2), default=NUM_REQUESTS, metavar="N", help=f"of a window (default {NUM_REQUESTS})")
    add("--max-tokens", type=whole(1), default=MAX_TOKENS, metavar="N", help=f"asked for (default {MAX_TOKENS})")
    add("--slowness", type=one(above(0)), default=1.0, metavar="X", help="steps take X times the table's time")
    add("--jitter", type=one(at_least(0)), default=0.0, metavar="J", help="relative spread of steps' seconds")
    add("--seed", type=whole(0), default=0, help="of classes and jitter (default 0)")
    add("--oracle", action="store_true", help="an analysis: policies know the true lengths")
    add("--prefix-cache", action=argparse.BooleanOptionalAction, default=True, help="share the prompts' common blocks")
    add("--processes", type=whole(1), default=os.cpu_count() or 1, metavar="N", help="worker processes")


def make_grid(options: argparse.Namespace, policies: tuple[PolicySpec, ...]) -> Grid:
    """Check everything that was asked for; raises ValueError saying what is wrong."""
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
        slowness=options.slowness,
        jitter=options.jitter,
        seed=options.seed,
        knows_lengths=options.oracle,
        device={} if options.prefix_cache else {"prefix_cache": False},
    )
    pattern.make_device()
    grid = Grid(pattern, tables, traffic, options.slo, options.load, policies)
    grid.check()
    return grid
