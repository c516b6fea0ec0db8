"""The factory that vLLM's `step_policy` option names: `vllm_patch.factory:build`.

`step_policy_config` has these keys, all optional but `policy`:

    policy    name of a step policy of the core: "neustream", "fcfs", ...
    table     path of a latency table (needed by every policy but fcfs, and by SLOs given as scales)
    slo       SLO of requests that bring none: {"pslo": 3, "dslo": 1.5} or {"ttft_ms": ..., "tpot_ms": ...}
    on_miss   "reject" (default) or "demote"
    options   keyword arguments of the policy
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neustream.ledger import split_slo
from neustream.policies import check_abilities, make_policy
from neustream.policies.base import StepPolicy
from neustream.policies.fcfs import Fcfs
from neustream.slo import ScaleSlo, parse_slo
from neustream.tables import LatencyTable, load_table
from vllm_patch.adapter import CAN_SPLIT, Adapter

KEYS = {"policy", "table", "slo", "on_miss", "options"}


def build(scheduler_config: Any, cache_config: Any, config: Mapping[str, Any] | None) -> Adapter:
    """The adapter around the configured policy. Raises ValueError (TableError) for a bad configuration."""
    policy, table = _parts(config)
    assert config is not None
    return Adapter(
        policy,
        table,
        max_model_len=scheduler_config.max_model_len,
        default_slo=config.get("slo"),
        on_miss=config.get("on_miss", "reject"),
    )


def check_config(config: Mapping[str, Any] | None) -> None:
    """Raise ValueError for a configuration that `build` would refuse. Called before any model is loaded."""
    _parts(config)


build.check_config = check_config  # type: ignore[attr-defined]


def _parts(config: Mapping[str, Any] | None) -> tuple[StepPolicy, LatencyTable | None]:
    if not config or "policy" not in config:
        raise ValueError(f"step_policy_config needs the key 'policy'; it has {sorted(config or {})}")
    unknown = set(config) - KEYS
    if unknown:
        raise ValueError(f"step_policy_config has unknown keys {sorted(unknown)}; known are {sorted(KEYS)}")
    name, options = config["policy"], config.get("options") or {}
    if not isinstance(options, Mapping):
        raise ValueError(f"step_policy_config: options must be a mapping, got a {type(options).__name__}")
    if not isinstance(name, str):
        raise ValueError(f"step_policy_config: policy must be a name, got a {type(name).__name__}")
    if not isinstance(config.get("table") or "", str | Path):
        raise ValueError(f"step_policy_config: table must be a path, got a {type(config['table']).__name__}")
    check_abilities(name, can_split=CAN_SPLIT, driver="vLLM 0.5.4")
    table = load_table(config["table"]) if config.get("table") else None
    slo, _ = split_slo(config.get("slo"), config.get("on_miss", "reject"))
    if slo and isinstance(parse_slo(slo), ScaleSlo) and table is None:
        raise ValueError("step_policy_config: an SLO given as a scale needs 'table'")
    if table is not None:
        return make_policy(name, table, **{str(key): value for key, value in options.items()}), table
    if name == "fcfs":
        return Fcfs(), None
    raise ValueError(f"step_policy_config: policy {name!r} needs 'table', the path of a latency table")
