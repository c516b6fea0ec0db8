"""The kinds of SLO that cells have: absolute ones, as users state them, one class or two in one queue."""

from __future__ import annotations

from collections.abc import Mapping

from neustream.slo import parse_slo
from neustream.workload.classes import SloClass, check_classes, parse_slo_class


def _class(name: str, ttft: float, tpot: float) -> SloClass:
    return SloClass(name, parse_slo({"ttft_ms": 1000 * ttft, "tpot_ms": 1000 * tpot}))


SLO_KINDS: Mapping[str, tuple[SloClass, ...]] = {
    "A": (_class("", 1.0, 0.100),),
    "B": (_class("", 6.0, 0.080),),
    "C": (_class("tight", 1.0, 0.080), _class("loose", 6.0, 0.200)),
}
"""By name. A: first token after 1 s, 100 ms each from there. B: 6 s, 80 ms. C: two classes of equal shares."""


def slo_classes(kind: str) -> tuple[SloClass, ...]:
    """The classes of a kind: a name of `SLO_KINDS`, or `name=ttft_ms:…,tpot_ms:…`, several joined by `+`.

    Raises ValueError, one line, for what is neither.
    """
    known = SLO_KINDS.get(kind)
    if known is not None:
        return known
    if "=" not in kind:
        raise ValueError(f"unknown SLO kind {kind!r}; there are {', '.join(SLO_KINDS)}, or name=ttft_ms:500,tpot_ms:60")
    classes = tuple(parse_slo_class(text) for text in kind.split("+"))
    check_classes(classes)
    return classes
