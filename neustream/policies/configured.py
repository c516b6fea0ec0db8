"""A policy as an engine's configuration names it: the same keys for every engine that a policy is plugged into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neustream.ledger import split_slo
from neustream.policies import check_abilities, make_policy
from neustream.policies.base import StepPolicy
from neustream.policies.fcfs import Fcfs
from neustream.request import OnMiss
from neustream.slo import ScaleSlo, parse_slo
from neustream.tables import LatencyTable, load_table

KEYS = frozenset({"policy", "table", "slo", "on_miss", "options"})


@dataclass(frozen=True, slots=True)
class Configured:
    """A policy that is made, its table, and the SLO (outside form) of requests that bring none."""

    policy: StepPolicy
    table: LatencyTable | None
    slo: Mapping[str, Any] | None
    on_miss: OnMiss


def configured(
    config: Mapping[str, Any] | None, *, where: str, can_split: bool, driver: str, more: frozenset[str] = frozenset()
) -> Configured:
    """What `config` asks for; `where` is what messages call it.

    Its keys, all optional but `policy`: `policy`, a name; `table`, the path of a latency table, which every policy but
    fcfs needs, and so do SLOs given as scales; `slo`; `on_miss`; `options`, the policy's keyword arguments; and `more`,
    which the caller reads. Raises ValueError, one line (TableError for a bad table), and loads nothing else.
    """
    if not isinstance(config, Mapping) or "policy" not in config:
        raise ValueError(f"{where} needs the key 'policy'; it has {sorted(config or {})}")
    unknown = set(config) - KEYS - more
    if unknown:
        raise ValueError(f"{where} has unknown keys {sorted(unknown)}; known are {sorted(KEYS | more)}")
    name, options = config["policy"], config.get("options") or {}
    if not isinstance(options, Mapping):
        raise ValueError(f"{where}: options must be a mapping, got a {type(options).__name__}")
    if not isinstance(name, str):
        raise ValueError(f"{where}: policy must be a name, got a {type(name).__name__}")
    if not isinstance(config.get("table") or "", str | Path):
        raise ValueError(f"{where}: table must be a path, got a {type(config['table']).__name__}")
    check_abilities(name, can_split=can_split, driver=driver)
    table = load_table(config["table"]) if config.get("table") else None
    slo, on_miss = split_slo(config.get("slo"), config.get("on_miss", "reject"))
    if slo and isinstance(parse_slo(slo), ScaleSlo) and table is None:
        raise ValueError(f"{where}: an SLO given as a scale needs 'table'")
    if table is not None:
        policy = make_policy(name, table, **{str(key): value for key, value in options.items()})
    elif name == "fcfs":
        policy = Fcfs()
    else:
        raise ValueError(f"{where}: policy {name!r} needs 'table', the path of a latency table")
    return Configured(policy, table, config.get("slo"), on_miss)
