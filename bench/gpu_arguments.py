"""The command line of the campaign on a GPU machine.

Imports the standard library only: `neustream.cli.arguments` needs numpy, which may come with the wheels.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NoReturn

MODELS = ("dit-s-2-256", "dit-xl-2-256", "sd15-512", "palette-256")
POLICIES = ("clockwork", "neustream", "slack")
QUICK_MINUTES = 8.0


class BadInput(ValueError):
    """Something the user gave that cannot work; the message says what, and what would."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def names(text: str) -> tuple[str, ...]:
    """An argparse type: `a,b`, each named once."""
    items = tuple(item.strip() for item in text.split(","))
    if len(set(items)) < len(items) or "" in items:
        raise argparse.ArgumentTypeError(f"expected names like a,b, each once, got {text!r}")
    return items


def positive(text: str) -> float:
    """An argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def count(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def parser() -> Parser:
    """The command line."""
    result = Parser(
        prog="gpu.sh",
        description="Latency tables, step shares and goodput of image models on this machine, into OUT/gpu.json.",
        epilog="Stopped, or out of time? The same command goes on. docs/gpu.md says what comes out.",
    )
    add = result.add_argument
    add("out", nargs="?", type=Path, metavar="OUT", help="the campaign's folder: new, or one that goes on")
    add("--models", type=names, default=MODELS, metavar="M,…", help=f"default {','.join(MODELS)}")
    add("--policies", type=names, default=POLICIES, metavar="P,…", help=f"default {','.join(POLICIES)}")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    add("--quick", action="store_true", help="fewer sizes, steps and rates, in under 9 minutes")
    add(
        "--minutes",
        type=positive,
        metavar="N",
        help=f"stop after so long (default: --quick {QUICK_MINUTES:g}, else none)",
    )
    add("--requests", type=count, metavar="N", help="requests per setting (default 500; --quick: 4 s of arrivals)")
    add("--steps", metavar="N|LO:HI", help="denoising steps, HI excluded (default: the paper's; --quick: fewer)")
    add("--wheels", type=Path, metavar="DIR", help="wheels of what this Python lacks; installed into OUT only")
    add("--collect-wheels", type=Path, metavar="DIR", help="download these wheels, where there is a network, and stop")
    return result
