"""Profile an image pipeline: every module over batch sizes, run as the executor runs it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from neusim.profiling.fit import fit_batch
from neusim.profiling.measure import Visits, disturbed, measure, medians, spread
from neusim.profiling.settings import Settings, SettingsError
from neusim.profiling.visits import Partial, partial_path
from neustream.catalog.images import MODELS
from neustream.tables import LatencyTable

if TYPE_CHECKING:
    from diffusion_plugin.measure import ModuleTimer

FULL_SIZES = (*range(1, 17), *range(18, 33, 2), *range(36, 65, 4))
QUICK_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
QUICK_REPEATS, FULL_REPEATS = 5, 9
QUICK_SECONDS, FULL_SECONDS = 0.5, 3.0
"""What a point may take before it is visited no more."""
LONGEST_STEP = 20.0
"""Seconds; batch sizes beyond one whose step takes longer are left out."""
RUNS = 3
"""Steps timed per visit."""


class Point(NamedTuple):
    """One batch size of one module."""

    module: str
    batch: int

    def __str__(self) -> str:
        return f"{self.module} at {self.batch}"


def profile(settings: Settings) -> LatencyTable:
    """Measure every module of the pipeline. See `registry` for the contract."""
    dtype = check(settings)
    import torch

    from diffusion_plugin.build import load_pipeline, set_threads
    from diffusion_plugin.measure import ModuleTimer

    threads = set_threads(MODELS[settings.name], settings.device)
    pipeline = load_pipeline(settings.name, device=settings.device, dtype=getattr(torch, dtype))
    return profile_loaded(settings, ModuleTimer(pipeline), dtype, threads)


def profile_loaded(settings: Settings, timer: ModuleTimer, dtype: str, threads: int) -> LatencyTable:
    """The same for a pipeline that is loaded, with `dtype` and `threads`, and has its timer."""
    largest = MODELS[settings.name].max_batch
    sizes = [size for size in (QUICK_SIZES if settings.quick else FULL_SIZES) if size <= largest]
    points = [Point(module, size) for module in timer.pipeline.modules for size in fitting(timer, module, sizes)]
    key = {
        "model": settings.name,
        "device": settings.slug,
        "dtype": dtype,
        "threads": threads,
        "versions": versions(),
    }
    kept = Partial(partial_path(settings.out), key)
    if kept.num_visits:
        print(f"resuming: {kept.num_visits} visits are kept in {kept.path}")
    visits = measure(
        points,
        lambda point: timer.run(point.module, point.batch, RUNS),
        repeats=settings.repeats or (QUICK_REPEATS if settings.quick else FULL_REPEATS),
        seconds_per_point=QUICK_SECONDS if settings.quick else FULL_SECONDS,
        partial=kept,
        progress=settings.progress,
        label=settings.name,
    )
    return _table(settings, visits, {"dtype": dtype, "threads": threads if settings.device == "cpu" else None})


def _table(settings: Settings, visits: Visits[Point], how: dict[str, Any]) -> LatencyTable:
    seconds, noise = medians(visits), spread(visits)
    modules = dict.fromkeys(point.module for point in visits)
    fits = {module: fit_batch({p.batch: seconds[p] for p in visits if p.module == module}, noise) for module in modules}
    info: dict[str, Any] = {
        **how,
        "source": f"neusim/profile.py, {versions()}, {date.today().isoformat()}",
        "quick": settings.quick,
        "spread": round(noise, 4),
        "disturbed": round(disturbed(visits), 4),
        "fit": {module: report for module, (_, report) in fits.items()},
    }
    return LatencyTable(settings.name, settings.slug, {module: model for module, (model, _) in fits.items()}, info)


def check(settings: Settings) -> str:
    """The dtype to measure in. Raises SettingsError for what an image pipeline cannot be asked; loads nothing."""
    if settings.tp != 1:
        raise SettingsError(f"an image pipeline runs on one device: --tp must be 1, got {settings.tp}")
    if settings.layers is not None:
        raise SettingsError("--layers is for language models; an image pipeline is measured whole")
    if settings.device == "cpu" and settings.dtype == "float16":
        raise SettingsError("dtype float16 is not to be had on a CPU; there are bfloat16, float32")
    if settings.dtype == "auto":
        return "float32" if settings.device == "cpu" else "float16"
    return settings.dtype


def fitting(timer: ModuleTimer, module: str, sizes: Sequence[int]) -> list[int]:
    """Those of the sizes, from the smallest on, that memory holds and whose step is not too long to measure.

    Raises MemoryError where not even the smallest fits.
    """
    found: list[int] = []
    for size in sizes:
        try:
            (seconds,) = timer.run(module, size)
        except MemoryError:
            if not found:
                raise
            break
        found.append(size)
        if seconds > LONGEST_STEP:
            break
    return found


def versions() -> str:
    """What the steps ran on."""
    return ", ".join(f"{package} {version(package)}" for package in ("torch", "diffusers"))
