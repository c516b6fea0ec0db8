"""The flags that all experiments have, and what is checked of them before anything is loaded."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from neusim.profiling.settings import DTYPES
from neustream.catalog.machine import DEVICES, device_slug, local_device
from neustream.cli.arguments import BadInput, above, numbers, whole
from neustream.policies import POLICIES


def add_common_arguments(parser: argparse.ArgumentParser, *, model: str, policy: str) -> None:
    """Add the flags that mean the same for every kind of model. `model` and `policy` are the defaults."""
    parser.add_argument("--model", default=model, help=f"what is served (default {model})")
    parser.add_argument("--policy", default=policy, help=f"the step policy (default {policy})")
    parser.add_argument(
        "--rate",
        type=numbers(above(0)),
        metavar="R,…",
        help="requests per second (default: 0.6, 1 and 1.4 × the capacity that the latency table says)",
    )
    parser.add_argument(
        "--cv",
        type=numbers(above(0)),
        metavar="C,…",
        help="spread of the gaps between arrivals (default 1: Poisson)",
    )
    parser.add_argument(
        "--burstiness", type=numbers(above(0)), metavar="B,…", help="the same the other way round: 1/cv²"
    )
    parser.add_argument("--requests", type=whole(1), metavar="N", help="requests per setting")
    parser.add_argument("--num-dup", type=whole(1), default=1, metavar="N", help="repeats of each setting (default 1)")
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the first repeat (default 0); others follow")
    parser.add_argument(
        "--out", metavar="NAME", help="name of the run in runs/, or a path (default: time-policy-model)"
    )
    parser.add_argument("--quick", action="store_true", help="a few small requests: to see that it works")
    parser.add_argument("--device", help="whose latency table to use (default: this machine's)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="a latency table to use instead of that one")
    parser.add_argument("--dtype", help="data type of weights and activations (default: the device's)")


def resolve_cv(options: argparse.Namespace) -> tuple[float, ...]:
    """The values of --cv, or of --burstiness turned into them. Raises BadInput when both are given."""
    if options.cv and options.burstiness:
        raise BadInput("--burstiness is 1/cv²: give it or --cv, not both")
    if options.burstiness:
        return tuple(1 / math.sqrt(value) for value in options.burstiness)
    cv: tuple[float, ...] = options.cv or (1.0,)
    return cv


def resolve_device(options: argparse.Namespace) -> None:
    """Fill in `device` and `slug` (the name of its tables), and check them and `dtype`. Raises BadInput."""
    options.device = options.device or local_device()
    if options.device not in DEVICES:
        raise BadInput(f"unknown device {options.device!r}; there are {', '.join(DEVICES)}")
    try:
        options.slug = device_slug(options.device)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if options.dtype is not None and options.dtype not in DTYPES:
        raise BadInput(f"unknown dtype {options.dtype!r}; there are {', '.join(DTYPES)}")


def check_policy(name: str, kind: str, extra: Sequence[str] = ()) -> None:
    """Check a policy's name before any table is there. `kind` is "llm" or "loop"; `extra` names are right too.

    Raises BadInput naming those that serve this kind of model.
    """
    known = [*extra, *(key for key, entry in POLICIES.items() if getattr(entry, kind))]
    if name not in known:
        raise BadInput(f"unknown policy {name!r}; there are {', '.join(known)}")
