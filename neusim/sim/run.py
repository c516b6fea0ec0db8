"""One simulated experiment: a table, a policy, a workload and a device in, goodput out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from neusim.sim.device import Device, default_device
from neusim.sim.driver import SimulatedDriver
from neusim.sim.workload import Workload
from neustream.driver import Callbacks, Observers
from neustream.goodput import GoodputCounter
from neustream.policies import StepPolicy, is_llm, make_policy
from neustream.records import StepRecord
from neustream.request import Request
from neustream.slo import ScaleSlo
from neustream.tables import LatencyTable


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run."""

    summary: dict[str, Any]
    """`GoodputCounter.summary()`: docs/metrics.md defines every figure. Taken in the engine, in virtual time."""
    num_steps: int
    steps: tuple[StepRecord, ...] = field(default=(), repr=False)
    """By their ends; kept with `keep_steps`. Times are virtual, in seconds."""
    spared: float | None = None
    """Share of the admitted prompts' tokens that a prefix cache spared; None without one."""

    @property
    def good(self) -> int:
        """Requests that met their SLO."""
        return int(self.summary["good"])


class StepKeeper:
    """An observer that counts the steps and, if it `keeps` them, has their records."""

    def __init__(self, keeps: bool) -> None:
        self.keeps = keeps
        self.num_steps = 0
        self.kept: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.num_steps += 1
        if self.keeps:
            self.kept.append(record)

    def on_end(self, request: Request) -> None:
        """Ends are counted elsewhere."""


def named_policy(name: str, table: LatencyTable, device: Device, slo_scale: float | None = None) -> StepPolicy:
    """The policy of that name, told what a device like this one tells its policies."""
    options: dict[str, Any] = {}
    if not is_llm(table):
        processes = device.under(name).processes(table)
        if len(processes) > 1:
            options |= {"handover": device.handover, "margin": device.margin, "processes": processes}
        if slo_scale is not None:
            options["slo_scale"] = slo_scale
    return make_policy(name, table, **options)


def simulate(
    table: LatencyTable,
    policy: str | Callable[[], StepPolicy],
    workload: Workload,
    device: Device | None = None,
    *,
    slo_scale: float | None = None,
    seed: int = 0,
    keep_steps: bool = False,
    on_end: Callable[[Request], None] | None = None,
) -> Result:
    """Run `workload` on a simulated `device` under `policy`, in virtual time.

    `policy` is a name or makes one policy object for each process of the device (a named one that serves whole
    requests has it run in one process); `device` is by default the one that
    `default_device` gives. `slo_scale` is what a pipeline's policy takes its batch caps from, by default that of the
    workload. Where the workload has `num_units` (`HiddenLengths`), outputs end there; where it has `prefix`
    (`SharedPrefixes`) that names any block, prompts share memory. `seed` drives the jitter alone;
    `on_end` gets each request as it ends, and `keep_steps` keeps the record of each step.

    Raises ValueError for a policy that does not serve the table's model.
    """
    device = device or default_device(table)
    if isinstance(policy, str):
        device = device.under(policy)
    slo = getattr(workload, "slo", None)
    if slo_scale is None and isinstance(slo, ScaleSlo):
        slo_scale = slo.first
    counter, steps = GoodputCounter(), StepKeeper(keep_steps)
    build = partial(named_policy, policy, table, device, slo_scale) if isinstance(policy, str) else policy
    num_units, prefix = getattr(workload, "num_units", None), getattr(workload, "prefix", None)
    driver = SimulatedDriver(table, device, build, seed=seed, num_units=num_units, prefix=prefix)
    observers = (counter, steps) if on_end is None else (counter, steps, Callbacks(on_end))
    driver.run(workload.requests(table), Observers(*observers))
    return Result(counter.summary(), steps.num_steps, tuple(steps.kept), driver.spared)
