"""Studies from latency tables: each axis is swept in virtual time, the others kept at their usual values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from exp.figures.study import BatchSizes, Study, bin_batches, main_steps
from neusim.sim.device import default_device
from neusim.sim.run import simulate
from neusim.sim.sweep import MAX_TOKENS, Point, Sweep, default_rate, default_steps, num_tasks, run_sweep
from neustream.capacity import llm_capacity, pipeline_capacity
from neustream.catalog.paper import PAIRS, paper_rates
from neustream.cli.arguments import BadInput
from neustream.policies import is_llm, policies_for
from neustream.route import LOOP_MODULE
from neustream.tables import LatencyTable, find_table, table_names
from neustream.workload import MEAN_PROMPT

QUICK_PAIRS = (PAIRS[0], PAIRS[6])
LOADS: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Rates, as multiples of the device's capacity."""
USUAL_LOAD = 1.0
CVS: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 4.0)
IMAGE_SLO: dict[str, tuple[float, ...]] = {"slo_scale": (1.2, 1.5, 2.0, 3.0, 5.0, 7.0)}
LLM_SLO: dict[str, tuple[float, ...]] = {"pslo": (1.5, 2.0, 3.0, 5.0, 8.0), "dslo": (1.2, 1.5, 2.0, 3.0, 5.0)}
USUAL: dict[str, float] = {"cv": 2.0, "slo_scale": 3.0, "pslo": 3.0, "dslo": 1.5}
USUAL_LLM_CV = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One table's sweep: the points of each axis, and all of them together."""

    sweep: Sweep
    axes: dict[str, tuple[Point, ...]]
    usual: Point
    capacity: float

    @property
    def num_tasks(self) -> int:
        """Simulated runs and bounds; the two runs whose batch sizes are drawn count as well."""
        return num_tasks(self.sweep) + len(batch_policies(self.sweep.policies))


def pick_pairs(tables: Path, names: Sequence[str], *, quick: bool) -> list[tuple[str, str]]:
    """`(device, model)` of the tables to draw; `names` are models, or device/model. Raises BadInput for none."""
    if not names:
        known = [pair for pair in (QUICK_PAIRS if quick else PAIRS) if _is_there(tables, pair)]
        if not known:
            raise BadInput(f"none of the paper's models has a table in {tables}; name others with --models")
        return known
    found = {(device, name.removesuffix(".estimated")) for device, name in table_names(tables)}
    pairs = []
    for name in names:
        device, _, model = name.rpartition("/")
        matching = sorted(pair for pair in found if pair[1] == model and device in ("", pair[0]))
        if not matching:
            known_names = ", ".join(sorted({model for _, model in found})) or "none"
            raise BadInput(f"no table of {name} in {tables}; there are {known_names}")
        pairs += matching
    return list(dict.fromkeys(pairs))


def _is_there(tables: Path, pair: tuple[str, str]) -> bool:
    device, model = pair
    return any((tables / device / f"{model}{kind}.json").exists() for kind in ("", ".estimated"))


def make_plan(
    tables: Path,
    pair: tuple[str, str],
    policies: Sequence[str],
    num_requests: int,
    seed: int,
    *,
    quick: bool,
    published: bool = False,
) -> Plan:
    """Check a table, and lay out its sweep. Raises BadInput or TableError.

    With `published`, rates are the paper's where it has some for this pair, else multiples of the capacity.
    """
    table = find_table(tables, *pair)
    serving = policies_for(table)
    chosen = (
        tuple(policy for policy in policies if policy in serving)
        if policies
        else tuple(policies_for(table, peers=False))
    )
    if not chosen:
        raise BadInput(f"none of {', '.join(policies)} serves {table.model}; {', '.join(serving)} do")
    steps = None if is_llm(table) else default_steps(table.model)
    if steps is None and not is_llm(table):
        raise BadInput(f"how many denoising steps {table.model} takes is not known")
    capacity = _capacity(table, steps)
    slo = LLM_SLO if is_llm(table) else IMAGE_SLO
    usual_rate, rates = USUAL_LOAD * capacity, tuple(load * capacity for load in LOADS)
    paper = paper_rates(*pair) if published and not table.device.startswith("cpu") else None
    if paper is not None:
        usual_rate, rates = default_rate(table, {}, MAX_TOKENS) or usual_rate, paper
    usual = Point(
        float(f"{usual_rate:.3g}"),
        USUAL_LLM_CV if is_llm(table) else USUAL["cv"],
        {key: USUAL[key] for key in slo},
    )
    thin = slice(None, None, 3) if quick else slice(None)
    axes = {"rate": tuple(Point(float(f"{rate:.3g}"), usual.cv, usual.slo) for rate in rates[thin])}
    axes["cv"] = tuple(Point(usual.rate, cv, usual.slo) for cv in CVS[thin])
    for key, values in slo.items():
        axes[key] = tuple(Point(usual.rate, usual.cv, {**usual.slo, key: value}) for value in values[thin])
    points: list[Point] = []
    for point in (usual, *(point for row in axes.values() for point in row)):
        if point not in points:
            points.append(point)
    sweep = Sweep(table, default_device(table), chosen, tuple(points), num_requests, seed, steps)
    return Plan(sweep, axes, usual, capacity)


def _capacity(table: LatencyTable, steps: tuple[int, int] | None) -> float:
    if steps is None:
        return llm_capacity(table, prompt=MEAN_PROMPT, max_tokens=MAX_TOKENS, dslo=USUAL["dslo"])
    mean = (steps[0] + steps[1] - 1) / 2
    visits = {module: mean if module == LOOP_MODULE else 1.0 for module in table.modules}
    return pipeline_capacity(table, visits, USUAL["slo_scale"])


def run_plan(plan: Plan, processes: int, on_done: Callable[[], None]) -> Study:
    """Simulate it all."""
    sweep = plan.sweep
    rows = run_sweep(sweep, processes=processes, on_done=on_done)
    count = len(sweep.policies)
    first = {axis: [count * sweep.points.index(point) for point in points] for axis, points in plan.axes.items()}
    panels = {axis: [row for i in starts for row in rows[i : i + count]] for axis, starts in first.items()}
    table = sweep.table
    return Study(
        table.model,
        table.device,
        is_llm(table),
        f"simulated from {_article(table.origin)} latency table, {sweep.num_requests} requests per run",
        panels,
        list(_batches(plan, on_done)),
        ", ".join(f"{axis} {value:g}" for axis, value in plan.usual.axes.items()),
        plan.capacity,
    )


def _article(origin: str) -> str:
    return f"{'an' if origin.startswith('e') else 'a'} {origin}"


def batch_policies(policies: Sequence[str]) -> tuple[str, ...]:
    """The two whose batch sizes are compared: neustream's, and the first of the others in this order."""
    order = ("neustream", "clockwork", "fcfs", *policies)
    return tuple(dict.fromkeys(policy for policy in order if policy in policies))[:2]


def _batches(plan: Plan, on_done: Callable[[], None]) -> Iterator[BatchSizes]:
    sweep = plan.sweep
    runs = {}
    for policy in batch_policies(sweep.policies):
        workload = sweep.workload(plan.usual)
        runs[policy] = simulate(sweep.table, policy, workload, sweep.device, seed=sweep.seed, keep_steps=True).steps
        on_done()
    steps = {policy: main_steps(run) for policy, run in runs.items()}
    end = max((step[1] for run in steps.values() for step in run), default=0.0)
    for policy, run in steps.items():
        yield bin_batches(policy, run, end)
