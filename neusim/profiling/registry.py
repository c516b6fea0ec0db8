"""Which module profiles a model of a given name.

A profiler is a module with two functions:

    names(model: str) -> str | None
        The table's name for this model (`dit-nano`), or None if it is not of this module's kind. Imports no
        framework and loads nothing. May raise ValueError with one line, where the name is of its kind but wrong
        (a local folder that holds something else).

    profile(settings: Settings) -> LatencyTable
        Measures on `settings.device` and returns the table: `model` is `settings.name`, `device` is
        `settings.slug`, and `info` carries at least `dtype`, `source` and `fit` (`{module: report}`, reports as
        `neusim.profiling.fit.report` makes them; the command prints them). Raises SettingsError, one line, for
        what cannot be (a dtype that the device lacks, a package that is missing), before it loads anything.
        It keeps its visits in `Partial(partial_path(settings.out), ...)`, so that an interrupted run resumes.
        Writing the table and discarding the visits is the caller's business.

For the modules of an image pipeline that comes to:

    points = [(module, batch) for module in modules for batch in sizes]     # str(point) tells them apart
    visits = measure(points, run_point, repeats=..., seconds_per_point=..., partial=kept, label=settings.name)
    for module in modules:
        mine = {batch: found for (name, batch), found in visits.items() if name == module}
        model, report = fit_batch(trusted(mine), spread(mine))

where `run_point(point)` returns the seconds of a few runs, the device synchronised before and after each (see
`neusim.profiling.measure`). `neusim/profiling/llm.py` is the worked example.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from neusim.models import KNOWN, opt_name

DIFFUSION_PREFIXES = ("dit-", "sd-", "sd15", "palette-")


@dataclass(frozen=True, slots=True)
class Target:
    """A model and the module that profiles it, which is imported when it is needed."""

    name: str
    module: str

    def profiler(self) -> Any:
        """The module, imported."""
        return importlib.import_module(self.module)


def find_target(model: str) -> Target:
    """The profiler of `model`. Raises ValueError, one line, where there is none."""
    if model.startswith(DIFFUSION_PREFIXES):
        return _diffusion_target(model)
    name = opt_name(model)
    if name is not None:
        return Target(name, "neusim.profiling.llm")
    raise ValueError(f"unknown model {model!r}; there are {KNOWN}; image pipelines: dit-…, sd-…, palette-…")


def _diffusion_target(model: str) -> Target:
    module = "neusim.profiling.diffusion"
    try:
        name = importlib.import_module(module).names(model)
    except ImportError as error:
        message = f"{model} is an image pipeline, and what profiles those cannot be imported: {error}"
        raise ValueError(message) from error
    if name is None:
        raise ValueError(f"unknown image pipeline {model!r}")
    return Target(name, module)
