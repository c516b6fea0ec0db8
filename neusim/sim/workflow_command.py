"""`simulate.py --workflow NAME`: workflows over pools of replicas, in virtual time; policies × budgets × points."""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neusim.allocating.fluid import fluid_capacity, measure_demand, seconds_per_workflow
from neusim.allocating.model import best_split
from neusim.sim.parallel import outcomes
from neusim.sim.workflow_setup import Scenario, make_scenario
from neustream.catalog.workflows import WORKFLOWS
from neustream.cli.arguments import Parser, above, at_least, between, names, numbers, whole
from neustream.cli.paths import TABLES
from neustream.cli.report import Column, Row, format_table, number, percent, plain, spread, text
from neustream.files import check_writable, write_atomically
from neustream.workflow.budget import make_budget
from neustream.workflow.pool import Binding
from neustream.workload.arrivals import LEAST_CV, MOST_CV

BINDINGS: dict[str, Binding] = {"late": "late", "roundrobin": "round_robin"}
AXES = ("rate", "cv", "slo_scale", "deadline")


def parser() -> argparse.ArgumentParser:
    """The command line of `simulate.py` with `--workflow`."""
    result = Parser(prog="simulate.py", description=(__doc__ or "").split("\n")[0])
    add_scenario_flags(result)
    add = result.add_argument
    add("--policy", type=names, default=("neustream",), metavar="P,…", help="step policies of the replicas (neustream)")
    add("--budget", type=names, default=("lookahead",), metavar="B,…", help="budget rules (default lookahead)")
    add("--rate", type=numbers(above(0)), metavar="R,…", help="workflows/s (default: the fluid capacity)")
    add("--cv", type=numbers(between(LEAST_CV, MOST_CV)), default=(1.0,), metavar="C,…", help="spread of gaps (1)")
    add("--slo-scale", type=numbers(at_least(1)), default=(1.8,), metavar="S,…", help="× standalone latency (1.8)")
    add(
        "--deadline",
        type=numbers(above(0)),
        metavar="S,…",
        help="one deadline for all, s (default: sum of the stages')",
    )
    add("--replicas", metavar="N:N:…", help="by pool, in the order of the graph (default: as published)")
    add("--devices", type=whole(1), metavar="N", help="split N devices by the fluid capacity, instead of --replicas")
    add("--binding", choices=BINDINGS, default="late", help="when a call is bound to a replica (default late)")
    add("--json", type=Path, metavar="FILE", help="write a list with one object per run")
    add("--processes", type=whole(1), default=os.cpu_count() or 1, metavar="N", help="worker processes")
    return result


def add_scenario_flags(result: argparse.ArgumentParser) -> None:
    """The flags that say which workflow, with which tables, and what its calls are like."""
    add = result.add_argument
    add("--workflow", required=True, metavar="NAME", help=f"{', '.join(WORKFLOWS)}")
    add("--tables", type=Path, default=TABLES, help="the artifact's folder, or one with <device>/<model>.json")
    add("--device", help="whose tables: a folder of --tables")
    add("--trace", type=Path, metavar="FILE", help="the artifact's trace (default: the one beside its tables)")
    add("--revise-lengths", choices=("code", "vision"), default="code", help="assumed, since they are not recorded")
    add("--requests", type=whole(1), metavar="N", help="workflows per run (default: the trace's, or 300)")
    add("--seed", type=whole(0), help="of the arrivals (default: the artifact's for its trace, else 0)")
    add("--pool-same-model", action="store_true", help="one pool for all nodes of a model")


def asks_for_workflow(arguments: Sequence[str]) -> bool:
    """Whether a command line of `simulate.py` is for workflows."""
    return any(text == "--workflow" or text.startswith("--workflow=") for text in arguments)


def scenario_of(options: argparse.Namespace) -> Scenario:
    """The scenario that these flags name. Raises ValueError, one line."""
    return make_scenario(
        options.workflow,
        options.tables,
        options.device,
        trace=options.trace,
        revise_from=options.revise_lengths,
        num=options.requests,
        pooled=options.pool_same_model,
    )


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a sweep."""

    rate: float
    cv: float
    slo_scale: float
    deadline: float | None
    budget: str
    policy: str


@dataclass(frozen=True, slots=True)
class WorkflowSweep:
    """All runs of one scenario."""

    scenario: Scenario
    replicas: dict[str, int]
    binding: Binding
    seed: int | None
    tasks: tuple[Task, ...]

    def row(self, task: Task) -> dict[str, Any]:
        """Simulate one of them; its figures."""
        scenario = self.scenario
        load = scenario.workload(task.rate, task.cv, seed=self.seed, deadline=task.deadline)
        result = scenario.run(self.replicas, task.budget, task.policy, task.slo_scale, load, self.binding)
        axes = {name: getattr(task, name) for name in AXES}
        return {
            "workflow": scenario.workflow.name,
            "budget": task.budget,
            "policy": task.policy,
            **axes,
            **result.summary,
            "binds": binding_pool(result.summary),
            "binding": self.binding,
            "replicas": self.replicas,
            "pooled": scenario.is_pooled,
            "seed": self.seed,
        }

    def run(self, processes: int, on_done: Callable[[], object]) -> list[dict[str, Any]]:
        """Run them all; rows in the order of `tasks`."""
        found: dict[int, dict[str, Any]] = {}
        for i, row in outcomes(self.row, self.tasks, processes):
            found[i] = row
            on_done()
        return [found[i] for i in range(len(self.tasks))]


def binding_pool(summary: dict[str, Any]) -> str:
    """The pool in front of which calls wait longest, and for how many seconds on average."""
    pools = summary["pools"]
    name = max(pools, key=lambda pool: pools[pool]["wait"])
    return f"{name} {pools[name]['wait']:.1f} s"


def asked_replicas(scenario: Scenario, options: argparse.Namespace) -> dict[str, int]:
    """The replicas of each pool. Raises ValueError, one line."""
    if options.devices is not None:
        if options.replicas:
            raise ValueError("--devices and --replicas exclude each other")
        seconds = seconds_per_workflow(scenario, measure_demand(scenario), min(options.slo_scale))
        return best_split(seconds, options.devices)[0]
    return scenario.parse_replicas(options.replicas) if options.replicas else scenario.default_replicas()


def make_sweep(options: argparse.Namespace) -> WorkflowSweep:
    """Check everything that was asked for. Raises ValueError, one line."""
    scenario = scenario_of(options)
    for policy in options.policy:
        scenario.check_policy(policy)
    for budget in options.budget:
        make_budget(budget)
    replicas = asked_replicas(scenario, options)
    if options.json is not None:
        check_writable(options.json, "--json")
    rates = options.rate
    if rates is None:
        scale = min(options.slo_scale)
        capacity = fluid_capacity(scenario, measure_demand(scenario), scale, replicas)
        rates = (float(f"{capacity:.2g}"),)
    tasks = tuple(
        Task(*values)
        for values in itertools.product(
            rates, options.cv, options.slo_scale, options.deadline or (None,), options.budget, options.policy
        )
    )
    return WorkflowSweep(scenario, replicas, BINDINGS[options.binding], options.seed, tasks)


def format_rows(rows: Sequence[Row]) -> str:
    """One line per run."""
    columns = [
        Column("budget", text("budget")),
        Column("policy", text("policy")),
        *(Column(axis.replace("_", " "), plain(axis, 6)) for axis in AXES),
        Column("in time", plain("good", 6)),
        Column("each stage", plain("stages_in_time", 6)),
        Column("of", plain("requests", 6)),
        Column("turned away", plain("turned_away", 6)),
        Column("in time/s", number("workflow_goodput")),
        Column("e2e s p50/p99", spread("e2el", "s")),
        Column("work lost", percent("work_lost")),
        Column("longest wait", text("binds")),
    ]
    return format_table(rows, columns)


def format_nodes(rows: Sequence[Row]) -> str:
    """One line per run and node: what came out in time per second."""
    lines = [line for row in rows for line in _nodes(row)]
    columns = [
        Column("budget", text("budget")),
        Column("policy", text("policy")),
        *(Column(axis.replace("_", " "), plain(axis, 6)) for axis in AXES),
        Column("node", text("node")),
        Column("tokens in time/s", number("token_goodput", 4)),
        Column("p/s", number("p")),
        Column("d/s", number("d")),
    ]
    return format_table(lines, columns)


def _nodes(row: Row) -> Iterator[dict[str, Any]]:
    for name, rates in row["nodes"].items():
        yield {**{key: row[key] for key in ("budget", "policy", *AXES)}, "node": name, **rates}


def heading(sweep: WorkflowSweep) -> str:
    """One line over the table: what was simulated, and from which numbers."""
    scenario = sweep.scenario
    replicas = ", ".join(f"{name} {count}" for name, count in sweep.replicas.items())
    tasks = "recorded" if scenario.tasks else "sampled"
    origins = {table.origin for table in scenario.tables.values() if table.device != "cpu"}
    return (
        f"{scenario.workflow.name}: {scenario.num} {tasks} workflows; replicas: {replicas}; "
        f"{' and '.join(sorted(origins)) or 'assumed'} latency tables; virtual time"
    )


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    command = parser()
    options = command.parse_args(argv)
    try:
        sweep = make_sweep(options)
    except ValueError as error:
        command.error(str(error))
    try:
        with tqdm(total=len(sweep.tasks), unit="run", disable=len(sweep.tasks) == 1) as bar:
            rows = sweep.run(options.processes, bar.update)
    except KeyboardInterrupt:
        return 130
    print(heading(sweep))
    print(format_rows(rows))
    print()
    print(format_nodes(rows))
    if options.json is not None:
        write_atomically(options.json, json.dumps(rows, indent=1, allow_nan=False) + "\n")
    return 0
