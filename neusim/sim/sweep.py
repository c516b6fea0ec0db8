"""A sweep of simulated runs: the product of lists, run in worker processes, one row of figures for each run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from neusim.bound import request_bound
from neusim.sim.device import Device, Layout
from neusim.sim.parallel import outcomes
from neusim.sim.run import simulate
from neusim.sim.workload import LlmWorkload, PipelineWorkload, TraceWorkload, Workload
from neustream.capacity import llm_capacity
from neustream.catalog.paper import paper_steps, usual_rate
from neustream.policies import is_llm
from neustream.slo import parse_slo
from neustream.tables import LatencyTable
from neustream.workload import MEAN_PROMPT, Bursts
from neustream.workload.classes import SloClass
from neustream.workload.traces import TracedRequest, scaled

MAX_TOKENS = 300
LLM_CV, PIPELINE_CV = 1.0, 2.0
MAX_BOUNDED = 20_000
"""Requests beyond which no bound is computed: it needs them all at once."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a sweep: everything but the policy."""

    rate: float
    cv: float
    slo: dict[str, float]
    """As `neustream.slo.parse_slo` takes it; its keys are columns of the results. Empty where there are SLO classes."""
    trace_scale: float | None = None
    """How many times as fast a trace with times is played. `rate` is then what that comes to; `cv` means nothing."""

    @property
    def axes(self) -> dict[str, float]:
        if self.trace_scale is not None:
            return {"rate": self.rate, "trace_scale": self.trace_scale, **self.slo}
        return {"rate": self.rate, "cv": self.cv, **self.slo}


@dataclass(frozen=True, slots=True)
class Sweep:
    """All runs of one table."""

    table: LatencyTable
    device: Device
    policies: tuple[str, ...]
    points: tuple[Point, ...]
    num_requests: int = 500
    seed: int = 0
    steps: tuple[int, int] | None = None
    """Denoising steps lo, hi (hi excluded), of an image pipeline."""
    max_tokens: int = MAX_TOKENS
    has_bound: bool = True
    """Whether to compute what no schedule could exceed, where that can be done."""
    info: dict[str, Any] = field(default_factory=dict)
    """Goes into every row as it is."""
    classes: tuple[SloClass, ...] = ()
    trace: tuple[TracedRequest, ...] = ()
    """The requests of a trace, or made up with an output length each; empty: each output is `max_tokens` long."""
    lengths: str = "fixed"
    """How long outputs are: a key of `neusim.sim.lengths.LENGTHS`."""
    knows_lengths: bool = False
    """Whether policies are told the lengths of outputs that vary: for analyses only."""
    bursts: Bursts | None = None
    """Requests come in bursts rather than after gamma gaps."""

    @property
    def can_be_bounded(self) -> bool:
        """Whether the bound is valid here and affordable: steps never beat the table's modules that it knows of."""
        slowness = self.device.slowness
        never_faster = not self.device.jitter and isinstance(slowness, int | float) and slowness >= 1
        has_hits = self.device.prefix_cache and any(row.blocks for row in self.trace)
        is_valid = never_faster and self.table.mixed is None and not has_hits
        return self.has_bound and is_valid and self.num_requests <= MAX_BOUNDED

    def workload(self, point: Point) -> Workload:
        """The requests of a point; the same for every policy."""
        slo, seed, classes = parse_slo(point.slo) if point.slo else None, self.seed, self.classes
        if self.trace:
            trace = self.trace if point.trace_scale is None else scaled(self.trace, point.trace_scale)
            hidden = not self.knows_lengths
            made_up = (point.rate, point.cv, seed, classes)
            return TraceWorkload(trace, slo, self.max_tokens, *made_up, is_hidden=hidden, bursts=self.bursts)
        own = (self.num_requests, seed, classes, self.bursts)
        if self.steps is None:
            return LlmWorkload(point.rate, point.cv, slo, self.max_tokens, *own)
        return PipelineWorkload(point.rate, point.cv, slo, self.steps, *own)


def points(axes: dict[str, Sequence[float]]) -> tuple[Point, ...]:
    """The product of the axes `rate`, `cv` and those of the SLO, the last of them fastest.

    Where there is an axis `trace_scale`, `rate` has one value: the trace's own rate.
    """
    slo_keys = [key for key in axes if key not in ("rate", "cv", "trace_scale")]
    combinations = itertools.product(*axes.values())
    rows = [dict(zip(axes, values, strict=True)) for values in combinations]
    return tuple(
        Point(
            row["rate"] * row.get("trace_scale", 1.0),
            row["cv"],
            {key: row[key] for key in slo_keys},
            row.get("trace_scale"),
        )
        for row in rows
    )


def default_steps(model: str) -> tuple[int, int] | None:
    """The published range of denoising steps for this kind of model; None where none is known."""
    return paper_steps(model)


def default_rate(table: LatencyTable, slo: dict[str, float], max_tokens: int) -> float | None:
    """The published rate of an image model; a language model's capacity. None where none is known."""
    if is_llm(table):
        rate = llm_capacity(table, prompt=MEAN_PROMPT, max_tokens=max_tokens, dslo=slo.get("dslo", 1.5))
        return float(f"{rate:.3g}")
    return usual_rate(table.device, table.model)


def run_policy(sweep: Sweep, point: Point, policy: str) -> dict[str, Any]:
    """Simulate one policy at one point; the run's row, without its bound."""
    result = simulate(sweep.table, policy, sweep.workload(point), sweep.device, seed=sweep.seed)
    head = {"device": sweep.table.device, "model": sweep.table.model, "policy": policy}
    workload: dict[str, Any] = {"steps": list(sweep.steps)} if sweep.steps else {"max_tokens": sweep.max_tokens}
    if not sweep.steps:
        workload |= {"lengths": sweep.lengths, "knows_lengths": sweep.knows_lengths}
    if sweep.bursts is not None:
        workload["burst"] = {"size": sweep.bursts.size, "gap": sweep.bursts.gap}
    return {
        **head,
        **{axis: value for axis, value in point.axes.items() if axis != "cv" or sweep.bursts is None},
        **result.summary,
        "num_steps": result.num_steps,
        **({} if result.spared is None else {"spared": result.spared}),
        "seed": sweep.seed,
        **workload,
        "table_origin": sweep.table.origin,
        "layout": sweep.device.under(policy).layout,
        "kv_blocks": sweep.device.kv_blocks,
        "taken_at": "simulated engine",
        **sweep.info,
    }


def run_bound(sweep: Sweep, point: Point, layout: Layout) -> int | None:
    """Requests that no schedule could serve within their SLO at this point and layout; None where it is not known."""
    if not sweep.can_be_bounded:
        return None
    workload = sweep.workload(point)
    if isinstance(workload, TraceWorkload):
        workload = replace(workload, is_hidden=False)
    requests = list(workload.requests(sweep.table))
    device = sweep.device if layout == sweep.device.layout else replace(sweep.device, layout=layout, groups=None)
    return request_bound(
        requests,
        sweep.table,
        devices=layout,
        groups=device.processes(sweep.table),
        max_batch=device.max_num_seqs if is_llm(sweep.table) else None,
        handover=device.handover,
        overhead=device.overhead,
        contention=device.contention,
        kv_blocks=device.kv_blocks,
        block_size=device.block_size,
    )


def run_sweep(sweep: Sweep, *, processes: int = 1, on_done: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Run it all; rows in order of the points, and of the policies within each. `on_done` is told of each task."""
    tasks = list(_tasks(sweep))
    done: dict[Task, Any] = {}
    for i, outcome in outcomes(partial(_run, sweep), tasks, processes):
        done[tasks[i]] = outcome
        on_done()
    rows = [(i, done[i, j]) for i in range(len(sweep.points)) for j in range(len(sweep.policies))]
    return [row | {"bound": done.get((i, row["layout"]))} for i, row in rows]


def num_tasks(sweep: Sweep) -> int:
    """How often `on_done` will be called."""
    return sum(1 for _ in _tasks(sweep))


Task = tuple[int, int | Layout]
"""Positions of a point and of a policy; or a point's bound for those policies that run in this layout."""


def _tasks(sweep: Sweep) -> Iterator[Task]:
    layouts = dict.fromkeys(sweep.device.under(policy).layout for policy in sweep.policies)
    for i in range(len(sweep.points)):
        for j in range(len(sweep.policies)):
            yield i, j
        if sweep.can_be_bounded:
            yield from ((i, layout) for layout in layouts)


def _run(sweep: Sweep, task: Task) -> Any:
    point, what = sweep.points[task[0]], task[1]
    if isinstance(what, int):
        return run_policy(sweep, point, sweep.policies[what])
    return run_bound(sweep, point, what)
