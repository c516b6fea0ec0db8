"""Replays the requests of a real run, as its folder in `runs/` keeps them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeVar

from neusim.sim.device import Slowness, default_device
from neusim.sim.run import Result, named_policy, simulate
from neusim.validating import run_folder
from neusim.validating.run_folder import open_run, slo_of
from neustream.policies import is_llm
from neustream.records import RequestRecord, StepRecord
from neustream.request import Outcome, Request
from neustream.route import Route, Stage
from neustream.slo import Slo, parse_slo
from neustream.tables import LatencyTable, find_table, load_table

Key = TypeVar("Key", bound=Hashable)

STOCK = "vllm"
"""A real run's policy of that name is stock vLLM, which schedules as fcfs does."""
WINDOW = 0.5
"""Seconds over which a run's own speed is averaged: some tens of steps on a CPU, and short beside a burst."""
TOLERANCE = 1e-3
"""Seconds by which a rebuilt deadline may differ from the recorded one."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A workload of recorded requests: their arrivals, sizes, visits and SLO."""

    records: tuple[RequestRecord, ...]
    slo: Slo
    table: LatencyTable
    """The table that their deadlines were made with."""

    @property
    def num_requests(self) -> int:
        return len(self.records)

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        """Raises ValueError where the recorded deadlines do not follow from the run's table and the SLO."""
        for arrival, record in sorted(self._arrivals(), key=lambda pair: pair[0]):
            route = self._route(record.visits)
            deadlines = self.slo.bind(arrival, route, record.size, self.table)
            request = Request(record.id, arrival, deadlines, route, record.size)
            ends = (
                ("first_deadline", record.first_deadline, 1),
                ("last_deadline", record.last_deadline, request.max_units),
            )
            for key, recorded, unit in ends:
                if recorded is not None and abs(deadlines.at(unit) - recorded) > TOLERANCE:
                    raise ValueError(
                        f"request {record.id}: {key} was {recorded:.3f} s, the table of {self.table.model} on "
                        f"{self.table.device} makes it {deadlines.at(unit):.3f} s: not the table of that run"
                    )
            yield request

    @property
    def num_units(self) -> Callable[[Request], int]:
        """Units of a request's output: those that came where it finished then, else what it asked for."""
        finished = (Outcome.MET, Outcome.LATE)
        ends = {record.id: record.units for record in self.records if record.outcome in finished}
        return lambda request: ends.get(request.request_id, request.max_units)

    def _arrivals(self) -> Iterator[tuple[float, RequestRecord]]:
        for record in self.records:
            if record.arrival is None:
                raise ValueError(f"request {record.id}: when it arrived was not recorded")
            yield record.arrival, record

    @staticmethod
    def _route(visits: Mapping[str, int]) -> Route:
        emitting = {"prefill", "decode"}
        return tuple(Stage(module, count, emits=module in emitting) for module, count in visits.items())


@dataclass(frozen=True, slots=True)
class StepTimes:
    """How the steps of a real run's setting took other than its table says."""

    overhead: float = 0.0
    """Seconds per step beside what the table measures: deciding, and from the end of a step to the next."""
    drift: Mapping[str, float] = field(default_factory=dict)
    """Measured over predicted seconds of each module."""
    slowness: Slowness | None = None
    """The same of all modules together, over time."""


@dataclass(frozen=True, slots=True)
class RealRun:
    """A finished run's folder: what was served, under which policy, and what came of it."""

    folder: Path
    summary: Mapping[str, Any]
    records: tuple[tuple[RequestRecord, ...], ...]
    """The requests of each setting."""
    table: LatencyTable
    steps: tuple[StepTimes, ...]
    """Of each setting."""

    @property
    def policy(self) -> str:
        """The core's name of the policy that it ran."""
        name: str = self.summary["policy"]
        return "fcfs" if name == STOCK else name

    @property
    def can_split(self) -> bool:
        """Whether its engine ran pieces of prompts beside decodes: vLLM 0.5.4 with the patches does not."""
        version: str | None = self.summary.get("versions", {}).get("vllm")
        return version is not None and not version.startswith("0.5.")

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Each setting's axes and figures."""
        settings: list[dict[str, Any]] = self.summary["settings"]
        return settings

    def slo(self, setting: dict[str, Any]) -> dict[str, float]:
        """A setting's SLO as `parse_slo` takes it."""
        return slo_of(self.summary, setting)

    def replay(self, index: int, *, at_own_speed: bool = False) -> Result:
        """Simulate one setting's requests on one loop over all modules, as the real executors are.

        `at_own_speed`: with steps as much slower (or faster) than the table as the run's were at that time, which
        the policy does not know; what then differs from the real run is neither the table's nor the machine's doing.
        """
        steps = self.steps[index]
        slowness = steps.slowness if at_own_speed and steps.slowness is not None else 1.0
        device = default_device(
            self.table, layout="interleaved", overhead=steps.overhead, slowness=slowness, can_split=self.can_split
        )
        slo = parse_slo(self.slo(self.settings[index]))
        policy = partial(named_policy, self.policy, self.table, device, self.settings[index].get("slo_scale"))
        return simulate(self.table, policy, Replay(self.records[index], slo, self.table), device)


def read_run(folder: Path, tables: Path) -> RealRun:
    """Read a run's folder; its table is the file that it names, or else the one in `tables`.

    Raises ValueError for a folder that is no finished run, naming what is missing or damaged.
    """
    run = open_run(folder)
    run.need("table_device")
    if not run.is_complete:
        raise ValueError(f"{folder}: the run was interrupted; only a complete one can be compared")
    path = Path(run.summary.get("table", ""))
    if path.is_file():
        table = load_table(path, model=run.summary["model"])
    else:
        table = find_table(
            tables, run.summary["table_device"], run.summary["model"], run.summary.get("tensor_parallel")
        )
    records = tuple(tuple(group) for group in run.requests())
    steps = read_steps(run.path / "steps.jsonl", table, len(run.settings))
    return RealRun(run.path, run.summary, records, table, steps)


def read_steps(path: Path, table: LatencyTable, num_settings: int) -> tuple[StepTimes, ...]:
    """What a run's records of its steps say of time, setting by setting; nothing where there are none.

    An LLM's table measures the engine's whole step, so only the policy's decision comes on top; a pipeline's
    measures the module alone, so all of the scheduling does. Raises ValueError naming a damaged line.
    """
    is_language = is_llm(table)

    def deciding(step: StepRecord) -> float:
        return step.decision_seconds if is_language else step.schedule_seconds

    groups = run_folder.read_steps(path, num_settings)
    return tuple(step_times([(step, deciding(step)) for step in group]) for group in groups)


def step_times(steps: Sequence[tuple[StepRecord, float]]) -> StepTimes:
    """Of one setting's steps, each with the seconds that deciding took.

    What passes between a step and the next is taken as the median, free of waiting.
    """
    if not steps:
        return StepTimes()
    gaps = [later.time - earlier.time - earlier.seconds for (earlier, _), (later, _) in pairwise(steps)]
    overhead = fmean(deciding for _, deciding in steps) + (max(median(gaps), 0.0) if gaps else 0.0)
    known = [
        (step.kind, int(step.time // WINDOW), step.seconds - deciding, step.predicted_seconds)
        for step, deciding in steps
        if step.predicted_seconds
    ]
    if not known:
        return StepTimes(overhead)
    drift = _ratios((module, taken, predicted) for module, _, taken, predicted in known)
    over_time = _ratios((window, taken, predicted) for _, window, taken, predicted in known)
    overall = sum(taken for *_, taken, _ in known) / sum(predicted for *_, predicted in known)
    return StepTimes(overhead, drift, Slowness(WINDOW, over_time, overall))


def _ratios(rows: Iterable[tuple[Key, float, float]]) -> dict[Key, float]:
    """Σ measured / Σ predicted seconds by the rows' key."""
    taken: defaultdict[Key, float] = defaultdict(float)
    predicted: defaultdict[Key, float] = defaultdict(float)
    for key, measured, expected in rows:
        taken[key] += measured
        predicted[key] += expected
    return {key: taken[key] / predicted[key] for key in predicted}
