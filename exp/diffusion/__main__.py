"""`python -m exp.diffusion dit-nano --policy neustream`: serve image requests, print and keep their goodput."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp.diffusion import config, table
from exp.harness.folder import RunFolder, create_run_folder
from exp.harness.report import goodput_columns
from exp.harness.runner import run_settings
from exp.harness.settings import Setting, default_rates, sweep
from exp.harness.tables import profile_table, table_file, table_header
from exp.harness.versions import command_line, versions
from neustream.catalog.images import ModelSpec
from neustream.cli.arguments import BadInput, RunFailed, exit_code_for
from neustream.tables import LatencyTable

if TYPE_CHECKING:
    from exp.diffusion.bench import DiffusionBench


def header(options: argparse.Namespace, spec: ModelSpec, found: LatencyTable, path: Path) -> dict[str, Any]:
    """What the summary says of the run besides its figures."""
    return {
        "kind": "diffusion",
        "model": spec.name,
        "policy": options.policy,
        "device": options.slug,
        "dtype": options.dtype,
        "weights": options.weights or "random",
        **table_header(path, found),
        "capacity": options.capacity,
        "requests": options.requests,
        "steps": {"lowest": options.steps[0], "highest": options.steps[1] - 1},
        "schedule": options.schedule or spec.schedules[0],
        "taken_at": "engine",
        "versions": versions("torch", "diffusers", "transformers", "numpy"),
        "command": command_line(),
    }


def settings_of(options: argparse.Namespace, spec: ModelSpec, found: LatencyTable) -> list[Setting]:
    """The sweep. Its rates: --rate, or --load × the capacity, or the paper's, or multiples of the capacity."""
    options.capacity = table.capacity(found, spec, options.steps, min(options.slo_scale))
    rates = options.rate
    if rates is None and options.load is None:
        rates = config.default_sweep(spec, options)
    if rates is None:
        rates = default_rates(options.capacity, options.load or config.LOADS)
    options.requests = options.requests or config.default_requests(options, rates)
    axes = {"rate": rates, "cv": options.cv, "slo_scale": options.slo_scale}
    return sweep(axes, repeats=options.num_dup, seed=options.seed)


def check_files(options: argparse.Namespace, spec: ModelSpec) -> None:
    """Check what is to be read and written. Raises BadInput."""
    try:
        if options.weights is not None:
            from diffusion_plugin.weights import weights_folder

            weights_folder(options.weights, spec.networks)
        if options.image is not None:
            from diffusion_plugin.inputs import read_image

            read_image(options.image, spec.size)
        if options.save_images is not None:
            options.save_images.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise BadInput(f"cannot write the folder of images {options.save_images}: {error.strerror}") from error


def load(options: argparse.Namespace, spec: ModelSpec, found: LatencyTable, folder: RunFolder) -> DiffusionBench:
    """The pipeline, warmed up. Raises BadInput for weights that do not fit, RunFailed for anything unforeseen."""
    print(f"loading {spec.name} ({options.dtype}) on {options.slug} …", file=sys.stderr, flush=True)
    import torch

    from diffusion_plugin.build import load_pipeline, set_threads
    from diffusion_plugin.measure import ModuleTimer
    from exp.diffusion.bench import DiffusionBench

    try:
        set_threads(spec, options.device)
        dtype = getattr(torch, options.dtype)
        pipeline = load_pipeline(
            spec.name, weights=options.weights, device=options.device, dtype=dtype, seed=options.seed
        )
        ModuleTimer(pipeline).warm_up()
        gc.collect()
        gc.freeze()  # what is loaded stays: later collections need not walk it, which takes many steps' time
    except ValueError as error:
        raise BadInput(str(error)) from error
    except Exception as error:
        where = folder.write_error(error)
        raise RunFailed(f"cannot load {spec.name}: {type(error).__name__}: {error}; see {where}") from error
    return DiffusionBench(
        pipeline,
        found,
        policy=options.policy,
        num_requests=options.requests,
        steps=options.steps,
        schedule=options.schedule,
        image=options.image,
        save_images=options.save_images,
    )


def run(options: argparse.Namespace) -> int:
    """Check everything, then load the model and measure; returns the exit code."""
    spec = config.check_options(options)
    path = table_file(options, spec.name)
    found = table.read_table(path, options, spec) if path.exists() or options.table else None
    check_files(options, spec)
    with create_run_folder(options.out, options.policy, spec.name) as folder:
        try:
            if found is None:
                profile_table(path, spec.name, options)
                found = table.read_table(path, options, spec)
            if options.dtype in (None, "auto"):
                options.dtype = found.info.get("dtype", "float32" if options.device == "cpu" else "float16")
            settings = settings_of(options, spec, found)
            head = header(options, spec, found, path)
            bench = load(options, spec, found, folder)
            columns = goodput_columns(list(settings[0].values), unit="image")
            return run_settings(bench, settings, folder, head, best_by="request_goodput", columns=columns)
        finally:
            folder.remove_if_empty()


def main() -> int:
    """The command."""
    parser = config.make_parser()
    options = parser.parse_args()
    return exit_code_for(parser, lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
