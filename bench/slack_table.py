"""The simulated figures of docs/slack.md: good requests, `neustream` → `slack`.

    python bench/slack_table.py TABLES [--part robust|sweeps|overload|llm] [--processes N]

TABLES is a folder of published tables, <device>/<model>.json. Every figure is exact: the same tables give the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from neusim.sim import LlmWorkload, PipelineWorkload, default_device, simulate
from neusim.sim.sweep import default_rate, default_steps
from neustream.capacity import llm_capacity, pipeline_capacity
from neustream.route import LOOP_MODULE
from neustream.slo import ScaleSlo
from neustream.tables import find_table

POLICIES = ("neustream", "slack")
IMAGES = ("dit-s-2-256", "sd15-256")
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0)
SCALES = (1.2, 1.5, 2.0, 3.0)
ROBUST = (("dit-s-2-256", 2.0, 1.2), ("dit-s-2-256", 2.0, 1.5), ("dit-s-2-256", 2.0, 2.0), ("dit-s-2-256", 4.0, 3.0))
ROBUST += (("sd15-256", 1.25, 1.2), ("sd15-256", 1.25, 1.5))
DEVICES: dict[str, dict[str, Any]] = {
    "as the table says": {},
    "steps 5 % slower": {"slowness": 1.05},
    "steps 10 % slower": {"slowness": 1.1},
    "contention full": {"contention": "full"},
    "no contention": {"contention": "none"},
    "interleaved": {"layout": "interleaved"},
    "interleaved, 5 % slower": {"layout": "interleaved", "slowness": 1.05},
}


class Run(NamedTuple):
    """One line's cell: a setting, to be run under both policies."""

    line: str
    model: str
    rate: float
    cv: float
    scale: float
    device: dict[str, Any]
    num_requests: int = 500


def robust() -> Iterator[Run]:
    for name, device in DEVICES.items():
        for model, rate, scale in ROBUST:
            yield Run(name, model, rate, 2.0, scale, device)


def sweeps(tables: Path) -> Iterator[Run]:
    """Each axis of the published sweeps, the others at their usual values."""
    for model in IMAGES:
        usual = default_rate(find_table(tables, "rtx4090", model), {}, 1) or 1.0
        rates = [0.5 * i for i in range(1, 9)] if model.startswith("dit") else [0.75 + 0.25 * i for i in range(8)]
        for rate in rates:
            yield Run(f"{model}, rate", model, rate, 2.0, 3.0, {})
        for cv in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0):
            yield Run(f"{model}, cv", model, usual, cv, 3.0, {})
        for scale in (1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0):
            yield Run(f"{model}, SLO scale", model, usual, 2.0, scale, {})


def overload(tables: Path) -> Iterator[Run]:
    """One step loop at multiples of the capacity."""
    for model in IMAGES:
        table = find_table(tables, "rtx4090", model)
        low, high = default_steps(model) or (1, 2)
        visits = {module: (low + high - 1) / 2 if module == LOOP_MODULE else 1.0 for module in table.modules}
        for scale in SCALES:
            for load in LOADS:
                rate = load * pipeline_capacity(table, visits, scale)
                yield Run(f"{model}, scale {scale:g}", model, rate, 2.0, scale, {"layout": "interleaved"}, 400)


def image_pair(tables: Path, run: Run) -> str:
    """`neustream → slack`, good requests."""
    table = find_table(tables, "rtx4090", run.model)
    workload = PipelineWorkload(
        run.rate, run.cv, ScaleSlo(run.scale), default_steps(run.model) or (1, 2), run.num_requests
    )
    device = default_device(table, **run.device)
    good = [simulate(table, policy, workload, device).good for policy in POLICIES]
    return f"{run.model} {run.rate:.3g}/{run.cv:g}/{run.scale:g}: {good[0]} → {good[1]}"


def llm_pair(tables: Path, model: str, load: float, pslo: float) -> str:
    """Request and token goodput of both, at a multiple of the capacity, on a device that prefills whole prompts."""
    table = find_table(tables, "a6000", model)
    rate = load * llm_capacity(table, prompt=100, max_tokens=300, dslo=1.5)
    workload = LlmWorkload(rate, 1.0, ScaleSlo(pslo, 1.5))
    device = default_device(table, can_split=False)
    results = [simulate(table, policy, workload, device).summary for policy in POLICIES]
    cells = [f"{result['request_goodput']:.3g}, {result['token_goodput']:.4g}" for result in results]
    return f"{model} {load:g} × {rate / load:.3g}, pslo {pslo:g}: {cells[0]} → {cells[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tables", type=Path)
    parser.add_argument("--part", nargs="+", choices=("robust", "sweeps", "overload", "llm"), default=("robust",))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    parts = {"robust": robust, "sweeps": lambda: sweeps(options.tables), "overload": lambda: overload(options.tables)}
    with ProcessPoolExecutor(options.processes) as pool:
        for part in options.part:
            if part == "llm":
                cells = [(m, load, p) for m in ("opt-13b", "opt-30b", "opt-66b") for p in (3.0, 1.5) for load in LOADS]
                for line in pool.map(llm_pair, [options.tables] * len(cells), *zip(*cells, strict=True)):
                    print(line, flush=True)
                continue
            runs = list(parts[part]())
            for run, cell in zip(runs, pool.map(image_pair, [options.tables] * len(runs), runs), strict=True):
                print(f"{run.line:24} {cell}", flush=True)


if __name__ == "__main__":
    main()
