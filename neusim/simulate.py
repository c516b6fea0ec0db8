"""Replay a workload in virtual time, under the same policies that serve real ones.

    python neusim/simulate.py --device rtx4090 --model dit-s-2-256 --policy neustream,clockwork --rate 2,4
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
from typing import Any

from tqdm import tqdm

from neusim.sim.device import ARTIFACT_HANDOVER, Device, default_device
from neusim.sim.report import format_rows
from neusim.sim.run import named_policy
from neusim.sim.sweep import (
    LLM_CV,
    MAX_TOKENS,
    PIPELINE_CV,
    Sweep,
    default_rate,
    default_steps,
    find_bound,
    num_tasks,
    points,
    run_sweep,
)
from neustream.cli.arguments import Parser, above, at_least, names, numbers, step_range, whole
from neustream.cli.paths import TABLES
from neustream.files import write_atomically
from neustream.policies import is_llm
from neustream.slo import MS_PER_S
from neustream.tables import LatencyTable, find_table


def spread(text: str) -> float | None:
    """An argparse type: a number, or None for `table`."""
    try:
        return None if text == "table" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or `table`, got {text!r}") from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="simulate.py", description=(__doc__ or "").split("\n")[0])
    add = result.add_argument
    add("--device", required=True, help="whose latency table: a folder of --tables")
    add("--model", required=True, help="which model's table")
    add("--tables", type=Path, default=TABLES, help="folder with <device>/<model>.json (default neusim/tables)")
    add("--policy", type=names, default=("neustream",), metavar="P,…", help="step policies (default neustream)")
    add("--rate", type=numbers(above(0)), metavar="R,…", help="requests/s (default: published, or capacity)")
    add("--cv", type=numbers(above(0)), metavar="C,…", help="spread of the gaps (default 2; LLM 1: Poisson)")
    add("--slo-scale", type=numbers(at_least(1)), metavar="S,…", help="pipelines: × standalone latency (default 3)")
    add("--pslo", type=numbers(at_least(1)), metavar="S,…", help="LLMs: × prefill, to the first token (default 3)")
    add("--dslo", type=numbers(at_least(1)), metavar="S,…", help="LLMs: × decode step, per token (default 1.5)")
    add("--requests", type=whole(1), default=500, metavar="N", help="requests per run (default 500)")
    add("--seed", type=whole(0), default=0, help="of the arrivals and prompts (default 0)")
    add("--steps", type=step_range, metavar="N|LO:HI", help="denoising steps, hi excluded (default: the model's)")
    add("--max-tokens", type=whole(1), metavar="N", help=f"output tokens of each request (default {MAX_TOKENS})")
    add("--json", type=Path, metavar="FILE", help="write a list with one object per run")
    add("--bound", action=argparse.BooleanOptionalAction, default=True, help="also what no schedule could exceed")
    add("--processes", type=whole(1), default=os.cpu_count() or 1, metavar="N", help="worker processes of a sweep")
    device = result.add_argument_group("device")
    device.add_argument("--layout", choices=("process", "interleaved"), help="a process per module, or one for all")
    device.add_argument(
        "--handover-ms", type=float, help=f"between processes (default {ARTIFACT_HANDOVER * MS_PER_S:g})"
    )
    device.add_argument("--overhead-ms", type=float, default=0.0, help="per step, outside its module (default 0)")
    device.add_argument(
        "--jitter",
        type=spread,
        default=0.0,
        metavar="J",
        help="relative standard deviation of a step, or `table`: as measured (default 0)",
    )
    device.add_argument("--kv-blocks", type=whole(0), help="of 16 tokens (default: what the device has; 0: unbounded)")
    device.add_argument("--max-num-seqs", type=whole(1), default=256, help="sequences at once (default 256)")
    device.add_argument("--max-num-batched-tokens", type=whole(1), default=2048, help="in a step (default 2048)")
    return result


def make_sweep(options: argparse.Namespace) -> Sweep:
    """Check everything that was asked for; raises ValueError saying what is wrong."""
    if not options.tables.is_dir():
        raise ValueError(f"--tables {options.tables} is not a folder")
    table = find_table(options.tables, options.device, options.model)
    device = _device(options, table)
    for policy in options.policy:
        named_policy(policy, table, device)
    axes = _axes(options, table)
    steps = None
    if not is_llm(table):
        steps = options.steps or default_steps(table.model)
        if steps is None:
            raise ValueError(f"give --steps lo:hi: how many denoising steps {table.model} takes is not known")
    return Sweep(
        table,
        device,
        options.policy,
        points(axes),
        options.requests,
        options.seed,
        steps,
        options.max_tokens or MAX_TOKENS,
        options.bound and find_bound() is not None,
    )


def _axes(options: argparse.Namespace, table: LatencyTable) -> dict[str, Any]:
    slo: dict[str, tuple[float, ...]]
    if is_llm(table):
        kind, others = "a language model", ["slo_scale", "steps"]
        slo = {"pslo": options.pslo or (3.0,), "dslo": options.dslo or (1.5,)}
    else:
        kind, others = "an image pipeline", ["pslo", "dslo", "max_tokens", "kv_blocks"]
        slo = {"slo_scale": options.slo_scale or (3.0,)}
    for name in others:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} does not apply: {table.model} is {kind}")
    rates = options.rate
    if rates is None:
        tightest = {name: min(values) for name, values in slo.items()}
        rate = default_rate(table, tightest, options.max_tokens or MAX_TOKENS)
        if rate is None:
            raise ValueError(f"give --rate: there is no published one for {table.model}")
        rates = (rate,)
    return {"rate": rates, "cv": options.cv or (LLM_CV if is_llm(table) else PIPELINE_CV,), **slo}


def _device(options: argparse.Namespace, table: LatencyTable) -> Device:
    chosen: dict[str, Any] = {
        "overhead": options.overhead_ms / MS_PER_S,
        "jitter": _measured_spread(table) if options.jitter is None else options.jitter,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
    }
    if options.layout:
        chosen["layout"] = options.layout
    if options.handover_ms is not None:
        chosen["handover"] = options.handover_ms / MS_PER_S
    if options.kv_blocks is not None:
        chosen["kv_blocks"] = options.kv_blocks or None
    return default_device(table, **chosen)


def _measured_spread(table: LatencyTable) -> float:
    measured = table.info.get("spread")
    if not isinstance(measured, int | float):
        raise ValueError(f"--jitter table: the {table.origin} table of {table.model} does not say how steps spread")
    return float(measured)


def check_writable(path: Path) -> None:
    """Raises ValueError if a file cannot be written there."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--json {path} cannot be written")


def heading(sweep: Sweep) -> str:
    """One line over the table: what was simulated, and from which numbers."""
    table, device = sweep.table, sweep.device
    text = f"{table.model} on {table.device}, {table.origin} latency table"
    if is_llm(table):
        blocks = "unbounded KV cache" if device.kv_blocks is None else f"{device.kv_blocks} KV blocks"
        return f"{text}, {blocks}, {sweep.max_tokens} tokens each; virtual time"
    assert sweep.steps is not None
    layout = "a process per module" if device.layout == "process" else "modules interleaved"
    return f"{text}, {layout}, {sweep.steps[0]}…{sweep.steps[1] - 1} steps; virtual time"


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    command = parser()
    options = command.parse_args(argv)
    try:
        sweep = make_sweep(options)
        if options.json is not None:
            check_writable(options.json)
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
    if options.json is not None:
        write_atomically(options.json, json.dumps(rows, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
