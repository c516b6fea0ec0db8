"""`python -m exp.diffusion dit-nano --policy neustream`: serve image requests, print and keep their goodput."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))
    from neusim._script import prepare

    prepare(__file__)

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exp.diffusion import config
from exp.diffusion.config import ImageOptions
from exp.harness import program
from exp.harness.options import num_requests
from exp.harness.program import Kind, Scope
from exp.harness.runner import Bench
from exp.harness.settings import default_rates, sweep
from neustream.capacity import pipeline_capacity
from neustream.catalog.paper import paper_rates
from neustream.route import LOOP_MODULE
from neustream.tables import LatencyTable

LOADS = (1.0, 2.0)
"""Multiples of the capacity that are tried where no rate is given and the paper has none for the model."""
CPU_SECONDS = 60.0
"""How long the rates may take together on a CPU; the number of requests follows from it."""
LEAST_REQUESTS = 50


def scope(options: ImageOptions, table: LatencyTable) -> Scope:
    """Rates are --rate, or --load × the capacity, or the paper's on a GPU, or multiples of the capacity."""
    common, spec = options.common, options.spec
    steps = (options.steps[0] + options.steps[1] - 1) / 2
    visits = {module: steps if module == LOOP_MODULE else 1.0 for module in spec.modules}
    capacity = pipeline_capacity(table, visits, min(options.slo_scale))
    rates = common.rate
    if rates is None and options.load is None and common.device != "cpu" and not common.quick:
        rates = paper_rates(common.slug, spec.name)
    rates = rates or default_rates(capacity, options.load or LOADS)
    axes = {"rate": rates, "cv": common.cv, "slo_scale": options.slo_scale}
    points = sweep(axes, repeats=common.num_dup, seed=common.seed)
    return Scope(points, num_requests(common, rates, CPU_SECONDS, LEAST_REQUESTS), capacity)


def header(options: ImageOptions) -> Mapping[str, Any]:
    """What the summary says of the run."""
    return {
        "weights": options.weights or "random",
        "slo": {"kind": "scale"},
        "steps": {"lowest": options.steps[0], "highest": options.steps[1] - 1},
        "schedule": options.schedule or options.spec.schedules[0],
        "image": None if options.image is None else str(options.image),
    }


def load(options: ImageOptions, table: LatencyTable, path: Path, scope: Scope) -> Bench:
    """The pipeline, ready to serve."""
    from exp.diffusion.bench import load_bench  # imports torch: after all checks

    return load_bench(options, table, scope.num_requests)


KIND = Kind(
    name="diffusion",
    description="Serve image requests under SLOs and print their goodput.",
    epilog="Without --rate and --load: the paper's rates on a GPU, 1 and 2 × the capacity for a nano model or on a "
    "CPU. --cv is 2 by default, as in the paper. docs/diffusion.md says more.",
    unit="image",
    best_by="request_goodput",
    packages=("torch", "diffusers", "transformers", "numpy"),
    add_arguments=config.add_arguments,
    options=config.make_options,
    modules=lambda options: options.spec.modules,
    default_dtype=lambda options: "float32" if options.common.device == "cpu" else "float16",
    scope=scope,
    header=header,
    load=load,
    check_files=config.check_files,
)


def main() -> int:
    """The command."""
    return program.main(KIND)


if __name__ == "__main__":
    sys.exit(main())
