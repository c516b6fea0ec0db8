"""The command line of the diffusion experiments, checked before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from exp.harness.options import add_common_arguments, check_policy, resolve_cv, resolve_device
from neustream.catalog.images import MODELS, ModelSpec, model_spec
from neustream.catalog.paper import paper_rates
from neustream.cli.arguments import BadInput, Parser, above, at_least, numbers, step_range

DEFAULT_MODEL = {"cpu": "dit-nano", "cuda": "dit-s-2-256"}
SLO_SCALE = (3.0,)
CV = (2.0,)
LOADS = (1.0, 2.0)
"""Multiples of the capacity that are tried where no rate is given and the paper has none for the model."""
GPU_REQUESTS = 500
CPU_SECONDS = 60.0
"""How long the rates may take together on a CPU; the number of requests follows from it."""
LEAST_REQUESTS = 50
QUICK_REQUESTS, QUICK_STEPS = 20, (8, 13)


def make_parser() -> Parser:
    """The flags of `python -m exp.diffusion`."""
    parser = Parser(
        prog="exp.diffusion",
        description="Serve image requests under SLOs and print their goodput.",
        epilog="Without --rate and --load: the paper's rates on a GPU, 1 and 2 × the capacity for a nano model or on a "
        "CPU. --cv is 2 by default, as in the paper. docs/diffusion.md says more.",
    )
    parser.add_argument("name", nargs="?", metavar="MODEL", help=f"what is served: {', '.join(MODELS)}")
    add_common_arguments(parser, model="dit-s-2-256 on a GPU, dit-nano without", policy="neustream")
    parser.set_defaults(model=None)
    parser.add_argument(
        "--load", type=numbers(above(0)), metavar="L,…", help="rates as multiples of the capacity, instead of --rate"
    )
    parser.add_argument(
        "--slo-scale", type=numbers(at_least(1)), metavar="S,…", help="due by S × the standalone latency (default 3)"
    )
    parser.add_argument(
        "--steps", type=step_range, metavar="N|LO:HI", help="denoising steps, HI excluded (default: the paper's)"
    )
    parser.add_argument("--schedule", help="noise schedule: ddim, ddpm or euler (default: the model's)")
    parser.add_argument(
        "--weights", metavar="FOLDER|HUB_ID@COMMIT", help="weights in diffusers' layout (default: random)"
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="Palette's input (default: synthetic pictures)")
    parser.add_argument("--save-images", type=Path, metavar="DIR", help="keep the pictures there")
    return parser


def check_options(options: argparse.Namespace) -> ModelSpec:
    """Fill in what depends on the machine and check what needs no model. Raises BadInput; returns the model."""
    check_policy(options.policy, "loop")
    _check_device(options)
    if options.name and options.model and options.name != options.model:
        raise BadInput(f"two models are named: {options.name} and --model {options.model}")
    try:
        spec = model_spec(options.name or options.model or DEFAULT_MODEL[options.device])
    except ValueError as error:
        raise BadInput(str(error)) from error
    options.model = spec.name
    if options.rate and options.load:
        raise BadInput("--load gives rates as multiples of the capacity: give it or --rate, not both")
    if not options.cv and not options.burstiness:
        options.cv = CV
    options.cv = resolve_cv(options)
    options.slo_scale = options.slo_scale or SLO_SCALE
    options.steps = options.steps or (QUICK_STEPS if options.quick else spec.steps)
    if options.schedule is not None and options.schedule not in spec.schedules:
        raise BadInput(f"{spec.name} has no schedule {options.schedule!r}; it has {', '.join(spec.schedules)}")
    if options.image is not None and spec.family != "palette":
        raise BadInput(f"--image is for Palette; {spec.name} takes no image")
    return spec


def _check_device(options: argparse.Namespace) -> None:
    resolve_device(options)
    if options.device == "cpu" and options.dtype == "float16":
        raise BadInput("dtype float16 is not to be had on a CPU; there are bfloat16, float32")


def default_sweep(spec: ModelSpec, options: argparse.Namespace) -> tuple[float, ...] | None:
    """The paper's rates where a GPU serves one of its models; None where the capacity decides."""
    if options.device == "cpu" or options.quick:
        return None
    return paper_rates(options.slug, spec.name)


def default_requests(options: argparse.Namespace, rates: tuple[float, ...]) -> int:
    """Requests per setting: the paper's 500 on a GPU; on a CPU what the rates get through in a minute."""
    if options.quick:
        return QUICK_REQUESTS
    if options.device != "cpu":
        return GPU_REQUESTS
    count = int(CPU_SECONDS / sum(1 / rate for rate in rates))
    return min(max(count, LEAST_REQUESTS), GPU_REQUESTS)
