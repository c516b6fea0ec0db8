"""SLO classes: kinds of requests in one queue, each with its own SLO and its share of the traffic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neustream.request import OnMiss
from neustream.slo import Slo, parse_slo

EXAMPLE = "interactive=ttft_ms:500,tpot_ms:60,share:3"


@dataclass(frozen=True, slots=True)
class SloClass:
    """One class. `name` is a request's `slo_class`; `share` is relative to the shares of the other classes."""

    name: str
    slo: Slo
    share: float = 1.0
    on_miss: OnMiss = "reject"


def parse_slo_class(text: str) -> SloClass:
    """A class from `name=key:value,…`: the keys of an SLO, and if wanted `share` and `on_miss`.

    Raises ValueError, one line, for anything else.
    """
    name, separator, rest = text.partition("=")
    if not name or not separator or not rest:
        raise ValueError(f"an SLO class is written as {EXAMPLE}; got {text!r}")
    slo: dict[str, float] = {}
    share, on_miss = 1.0, "reject"
    for item in rest.split(","):
        key, separator, value = item.partition(":")
        if not separator:
            raise ValueError(f"SLO class {name}: expected key:value, got {item!r}")
        if key in slo or (key == "share" and share != 1.0):
            raise ValueError(f"SLO class {name}: {key} is given twice")
        if key == "on_miss":
            on_miss = value
            continue
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"SLO class {name}: {key} must be a number, got {value!r}") from None
        if key == "share":
            share = number
        else:
            slo[key] = number
    if on_miss not in ("reject", "demote"):
        raise ValueError(f"SLO class {name}: on_miss must be reject or demote, got {on_miss!r}")
    if not (math.isfinite(share) and share > 0):
        raise ValueError(f"SLO class {name}: share must be above 0, got {share:g}")
    try:
        return SloClass(name, parse_slo(slo), share, "demote" if on_miss == "demote" else "reject")
    except ValueError as error:
        raise ValueError(f"SLO class {name}: {error}") from error


def check_classes(classes: Sequence[SloClass]) -> None:
    """Raises ValueError where two classes have one name."""
    names = [slo_class.name for slo_class in classes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two SLO classes are called {name!r}")


def draw_classes(classes: Sequence[SloClass], count: int, seed: int) -> list[SloClass]:
    """A class for each of `count` requests, by the classes' shares; the same seed gives the same."""
    shares = np.array([slo_class.share for slo_class in classes])
    chosen = np.random.RandomState(seed).choice(len(classes), count, p=shares / shares.sum())
    return [classes[i] for i in chosen]
