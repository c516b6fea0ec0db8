"""Replay a workload in virtual time, under the same policies that serve real ones.

    python neusim/simulate.py --device rtx4090 --model dit-s-2-256 --policy neustream,clockwork --rate 2,4
    python neusim/simulate.py --workflow plot --help
    python -m neusim.simulate --device a6000 --model opt-13b --policy fcfs,neustream --rate 3 --pslo 3 --dslo 1.5

Lists are swept as a product. docs/simulator.md says what is modelled, and how far it is from real runs.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from neusim.sim.device import ARTIFACT_HANDOVER
from neusim.sim.lengths import LENGTHS
from neusim.sim.report import format_classes, format_rows, format_sizes
from neusim.sim.settings import NUM_REQUESTS, at_least_one, bursts, make_sweep, seconds_range, spread
from neusim.sim.sweep import MAX_TOKENS, Sweep, num_tasks, run_sweep
from neusim.sim.workflow_command import asks_for_workflow
from neusim.sim.workflow_command import main as serve_workflows
from neustream.cli.arguments import Parser, above, at_least, between, names, numbers, step_range, whole
from neustream.cli.paths import TABLES
from neustream.files import check_writable, write_atomically
from neustream.policies import is_llm
from neustream.slo import MS_PER_S
from neustream.workload import MEAN_OUTPUT
from neustream.workload.arrivals import LEAST_CV, MOST_CV
from neustream.workload.classes import EXAMPLE
from neustream.workload.published import PUBLISHED


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="simulate.py", description=(__doc__ or "").split("\n")[0])
    add = result.add_argument
    add("--device", required=True, help="whose latency table: a folder of --tables")
    add("--model", required=True, help="which model's table")
    add("--workflow", metavar="NAME", help="models as one workflow instead: `--workflow NAME --help` has its flags")
    add("--tables", type=Path, default=TABLES, help="folder with <device>/<model>.json (default neusim/tables)")
    add("--policy", type=names, default=("neustream",), metavar="P,…", help="step policies (default neustream)")
    add("--rate", type=numbers(above(0)), metavar="R,…", help="requests/s (default: published, or capacity)")
    add(
        "--cv",
        type=numbers(between(LEAST_CV, MOST_CV)),
        metavar="C,…",
        help="spread of the gaps (default 2; LLM 1: Poisson)",
    )
    add("--slo-scale", type=numbers(at_least(1)), metavar="S,…", help="pipelines: × standalone latency (default 3)")
    add("--pslo", type=numbers(at_least(1)), metavar="S,…", help="LLMs: × prefill, to the first token (default 3)")
    add("--dslo", type=numbers(at_least(1)), metavar="S,…", help="LLMs: × decode step, per token (default 1.5)")
    add("--goodput", nargs="+", metavar="NAME:MS", help="absolute SLO instead of scales: ttft:200 tpot:50 e2el:5000")
    add("--slo-class", action="append", metavar="NAME=…", help=f"a class of requests, repeatable: {EXAMPLE}")
    add("--requests", type=whole(1), metavar="N", help=f"requests per run (default {NUM_REQUESTS}; a trace: all)")
    add("--seed", type=whole(0), default=0, help="of the workload: arrivals, step counts, prompts (default 0)")
    add("--steps", type=step_range, metavar="N|LO:HI", help="denoising steps, hi excluded (default: the model's)")
    add("--max-tokens", type=whole(1), metavar="N", help=f"output tokens of each request (default {MAX_TOKENS})")
    add("--lengths", choices=tuple(LENGTHS), help="of outputs: all as long as asked for, the trace's, or log-normal")
    add("--mean-output", type=at_least_one, metavar="N", help=f"of log-normal outputs (default {MEAN_OUTPUT} tokens)")
    add("--oracle", action="store_true", help="an analysis: policies know how long outputs will be")
    add("--burst", type=bursts, metavar="SIZE:GAP_MS", help="requests come in bursts; instead of --cv")
    add(
        "--trace",
        type=Path,
        metavar="FILE",
        help=f"Azure CSV, Mooncake JSONL, ShareGPT JSON; or {', '.join(PUBLISHED)}",
    )
    add("--trace-scale", type=numbers(above(0)), metavar="X,…", help="play it X times as fast (default 1)")
    add("--trace-window", type=seconds_range, metavar="A:B", help="only its seconds A to B")
    add("--by-size", action="store_true", help="also good requests by tenths of the prompts' lengths")
    add("--json", type=Path, metavar="FILE", help="write a list with one object per run")
    add("--bound", action=argparse.BooleanOptionalAction, default=True, help="also what no schedule could exceed")
    add("--processes", type=whole(1), default=os.cpu_count() or 1, metavar="N", help="worker processes of a sweep")
    device = result.add_argument_group("device")
    device.add_argument("--tp", type=whole(1), metavar="N", help="the table for N devices (default: the plain one)")
    device.add_argument("--layout", choices=("process", "interleaved"), help="the artifact's processes, or one for all")
    device.add_argument(
        "--handover-ms", type=float, help=f"between processes (default {ARTIFACT_HANDOVER * MS_PER_S:g})"
    )
    device.add_argument(
        "--margin-ms", type=float, help="that neustream's rejection allows for it (default: the artifact's)"
    )
    device.add_argument("--slowness", type=float, default=1.0, metavar="X", help="steps take X times the table's time")
    device.add_argument(
        "--contention", choices=("table", "full", "none"), default="table", help="of processes (default: by the table)"
    )
    device.add_argument("--overhead-ms", type=float, default=0.0, help="per step, outside its module (default 0)")
    device.add_argument(
        "--jitter",
        type=spread,
        default=0.0,
        metavar="J",
        help="relative standard deviation of a step, or `table`: as measured (default 0)",
    )
    device.add_argument(
        "--prefix-cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="prompts share the blocks that a trace says they have in common",
    )
    device.add_argument(
        "--whole-prefills",
        action="store_true",
        help="no pieces of prompts beside decodes, as in vLLM 0.5.4 with the patches (default: as in today's)",
    )
    device.add_argument("--kv-blocks", type=whole(0), help="of 16 tokens (default: what the device has; 0: unbounded)")
    device.add_argument("--max-num-seqs", type=whole(1), default=256, help="sequences at once (default 256)")
    device.add_argument("--max-num-batched-tokens", type=whole(1), default=2048, help="in a step (default 2048)")
    return result


def heading(sweep: Sweep) -> str:
    """One line over the table: what was simulated, and from which numbers."""
    table, device = sweep.table, sweep.device
    text = f"{table.model} on {table.device}, {table.origin} latency table"
    if is_llm(table):
        blocks = "unbounded KV cache" if device.kv_blocks is None else f"{device.kv_blocks} KV blocks"
        if sweep.trace:
            told = ", told to policies" if sweep.knows_lengths else ""
            kind = f"{len(sweep.trace)} requests of at most {sweep.max_tokens} tokens, {LENGTHS[sweep.lengths]}{told}"
            return f"{text}, {blocks}, {kind}; virtual time"
        return f"{text}, {blocks}, {sweep.max_tokens} tokens each; virtual time"
    assert sweep.steps is not None
    layout = "the artifact's processes" if device.layout == "process" else "modules interleaved"
    return f"{text}, {layout}, {sweep.steps[0]}…{sweep.steps[1] - 1} steps; virtual time"


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    if asks_for_workflow(sys.argv[1:] if argv is None else argv):
        return serve_workflows(argv)
    command = parser()
    options = command.parse_args(argv)
    try:
        sweep = make_sweep(options)
        if options.json is not None:
            check_writable(options.json, "--json")
    except ValueError as error:
        command.error(str(error))
    total = num_tasks(sweep)
    try:
        with tqdm(total=total, unit="run", disable=len(sweep.points) * len(sweep.policies) == 1) as bar:
            rows = run_sweep(sweep, processes=options.processes, on_done=bar.update)
    except KeyboardInterrupt:
        return 130
    print(heading(sweep))
    print(format_rows(rows))
    if sweep.classes:
        print(format_classes(rows))
    if options.by_size:
        print(format_sizes(rows))
    if options.json is not None:
        write_atomically(options.json, json.dumps(rows, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
