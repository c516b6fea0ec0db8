"""The SLO of one request: flat keys in vLLM's `extra_args` (over HTTP: `vllm_xargs`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neustream.ledger import split_slo
from neustream.slo import SLO_KEYS, parse_slo

PREFIX = "slo_"
NUMBERS = {("slo_scale" if key == "slo_scale" else PREFIX + key): key for key in SLO_KEYS}
"""Our key of an SLO, by the name that a request gives it: `slo_ttft_ms`, `slo_pslo`, …"""
CLASS, ON_MISS, MAX_TOKENS = "slo_class", "slo_on_miss", "slo_max_tokens"
"""`slo_max_tokens` is what the policy takes for the request's `max_tokens`: for experiments whose texts end early."""


@dataclass(frozen=True, slots=True)
class RequestSlo:
    """What a request says of its SLO. `slo` None: the default of its class, else of the server."""

    slo: Mapping[str, Any] | None = None
    slo_class: str = ""
    max_tokens: int | None = None


def read_slo(
    extra_args: Mapping[str, Any] | None, classes: Mapping[str, Mapping[str, Any]] | None = None
) -> RequestSlo:
    """The SLO in a request's extra arguments; keys that do not begin with `slo_` are somebody else's.

    Raises ValueError, one line that names the key, for a value or a key that cannot be understood.
    """
    given = {key: value for key, value in (extra_args or {}).items() if isinstance(key, str) and key.startswith(PREFIX)}
    if not given:
        return RequestSlo()
    unknown = sorted(set(given) - {*NUMBERS, CLASS, ON_MISS, MAX_TOKENS})
    if unknown:
        raise ValueError(f"unknown key {unknown[0][:40]!r}; an SLO has {', '.join([*NUMBERS, CLASS, ON_MISS])}")
    name = given.get(CLASS, "")
    if not isinstance(name, str):
        raise ValueError(f"{CLASS} must be a name, got a {type(name).__name__}")
    if name and classes is not None and name not in classes:
        raise ValueError(f"{CLASS}: no class {name[:40]!r}; there are {', '.join(classes) or 'none'}")
    most = given.get(MAX_TOKENS)
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ValueError(f"{MAX_TOKENS} must be a whole number of at least 1")
    slo: dict[str, Any] = {key: given[asked] for asked, key in NUMBERS.items() if asked in given}
    if not slo and name and classes:
        slo = dict(classes[name])
    if ON_MISS in given:
        slo[ON_MISS.removeprefix(PREFIX)] = given[ON_MISS]
    fields, _ = split_slo(slo, "reject")
    if fields:
        parse_slo(fields)
    elif slo:
        raise ValueError(f"{ON_MISS} needs an SLO beside it")
    return RequestSlo(slo or None, name, most)
