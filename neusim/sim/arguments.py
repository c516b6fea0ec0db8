"""Command lines that refuse bad input in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def numbers(minimum: float, *, excluded: bool = False) -> Callable[[str], tuple[float, ...]]:
    """An argparse type: `1,1.5` gives (1.0, 1.5), each of them at least `minimum` (above it where excluded)."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            values = tuple(float(item) for item in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected numbers like 1,1.5, got {text!r}") from None
        for value in values:
            if not math.isfinite(value) or value < minimum or (excluded and value == minimum):
                raise argparse.ArgumentTypeError(
                    f"must be {'above' if excluded else 'at least'} {minimum:g}, got {value:g}"
                )
        return tuple(dict.fromkeys(values))

    return parse


def whole(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `minimum`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, got {text!r}")
        return int(text)

    return parse


def steps_range(text: str) -> tuple[int, int]:
    """An argparse type: `lo:hi`, hi excluded."""
    low, _, high = text.partition(":")
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) < int(high) <= 1001):
        raise argparse.ArgumentTypeError(f"expected lo:hi with 1 <= lo < hi <= 1001 (hi excluded), got {text!r}")
    return int(low), int(high)


def spread(text: str) -> float | None:
    """An argparse type: a number, or None for `table`."""
    try:
        return None if text == "table" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or `table`, got {text!r}") from None


def names(text: str) -> tuple[str, ...]:
    """An argparse type: `a,b`."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))
