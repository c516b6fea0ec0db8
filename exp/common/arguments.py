"""Command lines: one-line errors with exit code 2, lists of numbers, and the flags that all experiments have."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from neusim.devices import DEVICES, device_slug, local_device
from neusim.profiling.settings import DTYPES
from neustream.policies import POLICIES

Check = Callable[[float], str | None]
"""Says what a number should have been, or None if it is right."""


class BadInput(ValueError):
    """Something the user gave that cannot work; the message says what, and what would."""


class RunFailed(RuntimeError):
    """The run cannot go on, through no fault of the input; the message says why."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def above(bound: float) -> Check:
    """Checks that a number is finite and above `bound`."""
    return lambda value: None if math.isfinite(value) and value > bound else f"must be above {bound:g}"


def at_least(bound: float) -> Check:
    """Checks that a number is finite and at least `bound`."""
    return lambda value: None if math.isfinite(value) and value >= bound else f"must be at least {bound:g}"


def numbers(check: Check) -> Callable[[str], tuple[float, ...]]:
    """An argparse type: `1,1.5` gives (1.0, 1.5), each of which must pass the check."""

    def parse(text: str) -> tuple[float, ...]:
        values = []
        for item in text.split(","):
            try:
                value = float(item)
            except ValueError:
                raise argparse.ArgumentTypeError(f"expected numbers like 1,1.5, got {text!r}") from None
            wrong = check(value)
            if wrong:
                raise argparse.ArgumentTypeError(f"{wrong}, got {item.strip()}")
            values.append(value)
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"names a value twice: {text}")
        return tuple(values)

    return parse


def whole(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `minimum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        return value

    return parse


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


def parse_goodput(items: Sequence[str]) -> dict[str, float]:
    """`["ttft:200", "e2el:5000"]` as an SLO's outside form, `{"ttft_ms": 200.0, "e2el_ms": 5000.0}`."""
    slo: dict[str, float] = {}
    for item in items:
        name, _, text = item.partition(":")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if name not in ("ttft", "tpot", "e2el") or not (math.isfinite(value) and value > 0):
            raise BadInput(f"--goodput takes ttft:MS, tpot:MS and e2el:MS with MS above 0, got {item!r}")
        slo[f"{name}_ms"] = value
    return slo


def exit_code_for(parser: argparse.ArgumentParser, main: Callable[[], int]) -> int:
    """Run `main`; BadInput becomes one line and exit code 2, RunFailed one and 1, Ctrl-C exit code 130."""
    try:
        return main()
    except BadInput as error:
        parser.error(str(error))
    except RunFailed as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def setting_axes(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The named options as the axes of a sweep, in that order."""
    return {name: getattr(options, name) for name in names}
