"""Command lines: one-line errors with exit code 2, and the types of arguments that several commands take."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

COMMON_NAME = "neustream"
"""The command in front of all others; `sys.argv[0]` is `neustream NAME` in a command that it started."""

Check = Callable[[float], str | None]
"""Says what a number should have been, or None if it is right."""


class BadInput(ValueError):
    """Something the user gave that cannot work; the message says what, and what would."""


class RunFailed(RuntimeError):
    """The run cannot go on, through no fault of the input; the message says why."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage. Its `prog` is what the user typed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if sys.argv[0].startswith(f"{COMMON_NAME} "):
            options["prog"] = sys.argv[0]
        super().__init__(*arguments, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def above(bound: float) -> Check:
    """Checks that a number is finite and above `bound`."""
    return lambda value: None if math.isfinite(value) and value > bound else f"must be above {bound:g}"


def at_least(bound: float) -> Check:
    """Checks that a number is finite and at least `bound`."""
    return lambda value: None if math.isfinite(value) and value >= bound else f"must be at least {bound:g}"


def between(low: float, high: float) -> Check:
    """Checks that a number is within these bounds, both included."""
    return lambda value: None if low <= value <= high else f"must be between {low:g} and {high:g}"


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


MAX_STEPS = 1000
"""Denoising steps that a request may ask for: the noise schedules have as many timesteps."""


def step_range(text: str) -> tuple[int, int]:
    """An argparse type: `30` or `30:51` (the upper bound excluded) as (lowest, highest + 1)."""
    parts = text.split(":")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected a step count as 50, or a range as 30:51, got {text!r}")
    low = int(parts[0])
    high = int(parts[1]) if len(parts) == 2 else low + 1
    if not 1 <= low < high <= MAX_STEPS + 1:
        raise argparse.ArgumentTypeError(f"steps must be in 1…{MAX_STEPS}, the upper bound above the lower, got {text}")
    return low, high


def names(text: str) -> tuple[str, ...]:
    """An argparse type: `a,b`, each named once."""
    items = tuple(name.strip() for name in text.split(","))
    if len(set(items)) < len(items):
        raise argparse.ArgumentTypeError(f"names one twice: {text}")
    return items


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
