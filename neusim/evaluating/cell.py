"""One cell of a comparison: traffic, an SLO kind, a load and a device; run under one policy at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from neusim.evaluating.policies import Build, PolicySpec
from neusim.evaluating.slos import slo_classes
from neusim.evaluating.traffic import MAX_TOKENS, Traffic
from neusim.sim.device import Device, default_device
from neusim.sim.run import simulate
from neusim.sim.workload import TraceWorkload
from neustream.policies.base import PolicyContext, StepPolicy
from neustream.slo import AbsoluteSlo
from neustream.tables import LatencyTable, table_to_json


@dataclass(frozen=True, slots=True)
class Cell:
    """What a policy is judged on. Outputs end where the traffic says; no policy is told, unless `knows_lengths`."""

    table: LatencyTable
    traffic: Traffic
    slo: str = "A"
    """As `slo_classes` takes it."""
    load: float = 0.9
    """Mean rate of the requests, as a multiple of `capacity` on the same traffic."""
    max_tokens: int = MAX_TOKENS
    slowness: float = 1.0
    """Steps take so many times what the table says, which no policy is told."""
    jitter: float = 0.0
    """Relative standard deviation of a step's seconds."""
    seed: int = 0
    """Of the classes and of the jitter."""
    knows_lengths: bool = False
    """An analysis only: each request asks for exactly as many tokens as it will get."""
    rate: float | None = None
    """Requests per second; None: `load` × capacity."""
    device: Mapping[str, Any] = field(default_factory=dict)
    """Further options of `neusim.sim.Device`."""

    @property
    def axes(self) -> dict[str, Any]:
        """What tells this cell from others: columns of its rows."""
        return {
            "device": self.table.device,
            "model": self.table.model,
            "trace": self.traffic.name,
            "window": self.traffic.window,
            "slo": self.slo,
            "load": self.load,
            "slowness": self.slowness,
            "jitter": self.jitter,
            "seed": self.seed,
        }

    def workload(self) -> TraceWorkload:
        """The requests, the same for every policy. Raises ValueError for an SLO kind that is none."""
        rate = self.rate if self.rate is not None else self.load * capacity(self)
        rows, classes = self.traffic.at_rate(rate), slo_classes(self.slo)
        hidden = not self.knows_lengths
        return TraceWorkload(rows, None, self.max_tokens, seed=self.seed, classes=classes, is_hidden=hidden)

    def make_device(self) -> Device:
        """The simulated device."""
        return default_device(self.table, slowness=self.slowness, jitter=self.jitter, **self.device)


_CAPACITIES: dict[str, float] = {}


def capacity(cell: Cell) -> float:
    """Requests per second that saturated `fcfs` delivers of the cell's traffic, whatever their deadlines.

    All requests wait from the start; it is their number over the time to the last end, on a device that takes what
    its table says. Computed once a process for each traffic, table and device.
    """
    exact = replace(cell, slowness=1.0, jitter=0.0, rate=None)
    parts = [table_to_json(cell.table), cell.traffic.rows, cell.max_tokens, sorted(cell.device.items())]
    key = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
    if key not in _CAPACITIES:
        rows = [row._replace(offset=0.0) for row in cell.traffic.rows]
        workload = TraceWorkload(rows, AbsoluteSlo(), cell.max_tokens)
        summary = simulate(cell.table, "fcfs", workload, exact.make_device()).summary
        _CAPACITIES[key] = (summary["met"] + summary["late"]) / summary["seconds"]
    return _CAPACITIES[key]


def run_cell(cell: Cell, policy: str | PolicySpec | Build, **options: Any) -> dict[str, Any]:
    """Run one policy on a cell: the cell's axes and its figures, in requests and tokens.

    `policy` is a name, a spec, or a builder `(table, context, **options) -> StepPolicy`; `options` are its own.
    Beside `good`, `requests`, `units_on_time` and the other figures of docs/metrics.md the row has:

    - `good_share`, `attained_share`: requests good by the envelope, and by vLLM's definition, of all that came;
    - `token_share`: tokens on time, of all that were asked for;
    - `rate`: requests per second that came;
    - `spared`: share of the prompts' tokens that a prefix cache spared; None where the traffic names no prefixes.

    Raises ValueError, one line, for bad input.
    """
    if isinstance(policy, str):
        policy = PolicySpec(policy)
    if isinstance(policy, PolicySpec):
        spec = replace(policy, options={**policy.options, **options})
        label = spec.label

        def make() -> StepPolicy:
            return spec.make(cell.table)

    else:
        build, label = policy, getattr(policy, "__name__", str(policy))

        def make() -> StepPolicy:
            return build(cell.table, PolicyContext(), **options)

    workload = cell.workload()
    result = simulate(cell.table, make, workload, cell.make_device(), seed=cell.seed)
    figures = result.summary
    wanted = sum(min(row.output, cell.max_tokens) for row in cell.traffic.rows)
    span = workload.trace[-1].offset or 0.0
    return {
        **cell.axes,
        "policy": label,
        "rate": (len(workload.trace) - 1) / span,
        "good_share": figures["slo_attainment"],
        "attained_share": figures["mean_attainment"],
        "token_share": figures["units_on_time"] / wanted,
        **figures,
        "num_steps": result.num_steps,
        "spared": result.spared,
        "table_origin": cell.table.origin,
    }
