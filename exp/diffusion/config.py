"""The command line of the diffusion experiments, checked before anything is loaded."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from exp.harness.options import Common, Options, add_common_arguments, check_policy, chosen_device, common_options
from neustream.catalog.images import MODELS, ModelSpec, model_spec
from neustream.cli.arguments import BadInput, above, at_least, numbers, step_range

DEFAULT_MODEL = {"cpu": "dit-nano", "cuda": "dit-s-2-256"}
SLO_SCALE = (3.0,)
CV = (2.0,)
QUICK_STEPS = (8, 13)


@dataclass(frozen=True, slots=True)
class ImageOptions(Options):
    """What a diffusion experiment runs."""

    spec: ModelSpec
    load: tuple[float, ...] | None
    """Rates as multiples of the capacity."""
    slo_scale: tuple[float, ...]
    steps: tuple[int, int]
    """Denoising steps of a request: the lowest, and one past the highest."""
    schedule: str | None
    weights: str | None
    image: Path | None
    save_images: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m exp.diffusion`."""
    parser.add_argument("name", nargs="?", metavar="MODEL", help=f"what is served: {', '.join(MODELS)}")
    add_common_arguments(parser, model="dit-s-2-256 on a GPU, dit-nano without", policy="neustream")
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


def make_options(given: argparse.Namespace) -> ImageOptions:
    """Check the command line and fill in what depends on the machine. Raises BadInput."""
    check_policy(given.policy, "loop")
    device = chosen_device(given.device)
    if given.name and given.model and given.name != given.model:
        raise BadInput(f"two models are named: {given.name} and --model {given.model}")
    try:
        spec = model_spec(given.name or given.model or DEFAULT_MODEL[device])
    except ValueError as error:
        raise BadInput(str(error)) from error
    options = ImageOptions(
        common=common_options(given, device=device, model=spec.name, cv=CV),
        spec=spec,
        load=given.load,
        slo_scale=given.slo_scale or SLO_SCALE,
        steps=given.steps or (QUICK_STEPS if given.quick else spec.steps),
        schedule=given.schedule,
        weights=given.weights,
        image=given.image,
        save_images=given.save_images,
    )
    _check_fits(options, options.common, spec)
    return options


def _check_fits(options: ImageOptions, common: Common, spec: ModelSpec) -> None:
    """Raises BadInput for what the device or the model does not have, or what contradicts itself."""
    if common.device == "cpu" and common.dtype == "float16":
        raise BadInput("dtype float16 is not to be had on a CPU; there are bfloat16, float32")
    if common.rate and options.load:
        raise BadInput("--load gives rates as multiples of the capacity: give it or --rate, not both")
    if options.schedule is not None and options.schedule not in spec.schedules:
        raise BadInput(f"{spec.name} has no schedule {options.schedule!r}; it has {', '.join(spec.schedules)}")
    if options.image is not None and spec.family != "palette":
        raise BadInput(f"--image is for Palette; {spec.name} takes no image")


def check_files(options: ImageOptions) -> None:
    """Check what is to be read and written besides tables and the run. Raises BadInput."""
    try:
        if options.weights is not None:
            from diffusion_plugin.weights import weights_folder

            weights_folder(options.weights, options.spec.networks)
        if options.image is not None:
            from diffusion_plugin.inputs import read_image

            read_image(options.image, options.spec.size)
        if options.save_images is not None:
            options.save_images.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise BadInput(f"cannot write the folder of images {options.save_images}: {error.strerror}") from error
