"""Which module profiles a model of a given name.

A profiler is a module with one function:

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

from neustream.catalog import LlmShape, find_model


@dataclass(frozen=True, slots=True)
class Target:
    """A model and the module that profiles it, which is imported when it is needed."""

    name: str
    kind: str
    """`llm` or `diffusion`."""

    @property
    def module(self) -> str:
        """The name of the module that profiles it."""
        return f"neusim.profiling.{self.kind}"

    def profiler(self) -> Any:
        """The module, imported."""
        return importlib.import_module(self.module)


def find_target(model: str) -> Target:
    """The profiler of `model`. Raises ValueError, one line, where there is none."""
    found = find_model(model)
    if isinstance(found, LlmShape) and found.picture_tokens:
        raise ValueError(
            f"{found.name} reads pictures, whose time is not measured yet: `neusim/estimate.py` estimates its table"
        )
    kind = "llm" if isinstance(found, LlmShape) else "diffusion"
    return Target(found.name, kind)
