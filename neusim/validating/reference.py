"""Compares simulated runs with logged ones: a folder with `results.json` and `tables/<device>/<model>.json`.

A row of the results is one logged run: `model, device, system` (the policy), `rate, cv, slo` (the scale) and
`good`, its requests within their SLO of 500.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neusim.sim.device import default_device
from neusim.sim.run import simulate
from neusim.sim.sweep import default_steps
from neusim.sim.workload import PipelineWorkload
from neustream.files import read_json
from neustream.request import Outcome, Request
from neustream.slo import ScaleSlo
from neustream.tables import LatencyTable, find_table

NUM_REQUESTS = 500
TEXT_ENCODER = "text_encoder"
OWN_SPEED = {("rtx4090", "dit-s-2-256"): 1.11}
"""How many times as long as the table says the logged runs' steps took, by device and model, where that is known.

Measured without looking at goodput: the seconds that `clockwork` was busy in five runs, over what the table says of the
batches that it ran in them. docs/simulator.md gives each. Not known of models whose logs were not read for it.
"""
CONTRADICTION = 50
"""Repeats of a setting that differ by more than this cannot both be within 25 of any one prediction."""

Key = tuple[str, str, str, float, float, float]
"""Device, model, system, rate, cv, SLO scale: what was logged, once or several times."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One logged run and its simulation."""

    key: Key
    logged: int
    simulated: int
    in_flight: int
    """Requests that were served in time, but not before the log ended: `simulated` leaves them out."""
    is_contradicted: bool
    """Whether another run of the same setting was logged with a count more than `CONTRADICTION` away."""
    at_own_speed: int | None = None
    """The same as `simulated` with steps as slow as in the logged runs, where that is known."""

    @property
    def error(self) -> int:
        return abs(self.simulated - self.logged)


def read_results(folder: Path) -> list[tuple[Key, int]]:
    """The logged runs. Raises ValueError naming the file and what is wrong with it."""
    path = folder / "results.json"
    rows = read_json(path)
    try:
        return [(_key(row), int(row["good"])) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {type(error).__name__} {error}") from error


def _key(row: dict[str, Any]) -> Key:
    return (row["device"], row["model"], row["system"], row["rate"], row["cv"], row["slo"])


def compare(
    folder: Path,
    *,
    processes: int = 1,
    keep: Callable[[Key], bool] = lambda key: True,
    slowness: float | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> list[Comparison]:
    """Simulate every setting of the folder that `keep` wants, laid out as the artifact; a row per logged run.

    Steps take `slowness` times what the table says; without one, what it says, and once more what `OWN_SPEED` says.
    `on_done` is told of each setting.
    """
    rows = [(key, good) for key, good in read_results(folder) if keep(key)]
    keys = list(dict.fromkeys(key for key, _ in rows))
    tables = {key[:2]: find_table(folder / "tables", *key[:2]) for key in keys}
    chosen = 1.0 if slowness is None else slowness
    own = {key: speed for key in keys if slowness is None and (speed := OWN_SPEED.get(key[:2])) is not None}
    with ProcessPoolExecutor(processes) as pool:
        at_own = {key: pool.submit(_simulate, tables[key[:2]], key, speed) for key, speed in own.items()}
        simulated: dict[Key, tuple[int, int]] = {}
        outcomes = pool.map(partial(_simulate, slowness=chosen), [tables[key[:2]] for key in keys], keys)
        for key, counts in zip(keys, outcomes, strict=True):
            simulated[key] = counts
            on_done()
        at_own_speed = {key: outcome.result()[0] for key, outcome in at_own.items()}
    spread = {key: np.ptp([good for other, good in rows if other == key]) for key in keys}
    return [
        Comparison(key, good, *simulated[key], bool(spread[key] > CONTRADICTION), at_own_speed.get(key))
        for key, good in rows
    ]


def with_own_speed(rows: Sequence[Comparison]) -> list[Comparison]:
    """The rows whose runs' own speed is known, simulated at that."""
    return [replace(row, simulated=row.at_own_speed) for row in rows if row.at_own_speed is not None]


def ends_with_last_arrival(table: LatencyTable, system: str) -> bool:
    """Whether the log of such a run ends when the last request is sent, and lacks what is in flight then.

    So do those of Stable Diffusion under `neustream`, the pipeline with a text encoder: what they lack are the last
    few ids, however loose the SLO.
    """
    return system == "neustream" and TEXT_ENCODER in table


def _simulate(table: LatencyTable, key: Key, slowness: float) -> tuple[int, int]:
    """Good requests as the log counts them, and those that it lacks."""
    _, model, system, rate, cv, scale = key
    steps = default_steps(model)
    if steps is None:
        raise ValueError(f"how many denoising steps {model} takes is not known")
    workload = PipelineWorkload(rate, cv, ScaleSlo(scale), steps, NUM_REQUESTS)
    ended: list[Request] = []
    good = simulate(table, system, workload, default_device(table, slowness=slowness), on_end=ended.append).good
    if not ends_with_last_arrival(table, system):
        return good, 0
    last = max(request.arrival for request in ended)
    counted = sum(1 for r in ended if r.outcome is Outcome.MET and r.ended_at is not None and r.ended_at <= last)
    return counted, good - counted


def errors(rows: Sequence[Comparison]) -> dict[str, float]:
    """Median and 90th percentile of |simulated − logged|, over all runs and over those that are not contradicted."""
    figures: dict[str, float] = {}
    for name, chosen in (("all", rows), ("agreeing", [row for row in rows if not row.is_contradicted])):
        values = [row.error for row in chosen]
        figures |= {f"{name}_runs": len(values)}
        if values:
            figures |= {f"{name}_median": float(np.median(values)), f"{name}_p90": float(np.percentile(values, 90))}
    return figures
