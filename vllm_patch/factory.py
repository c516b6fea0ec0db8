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
from typing import Any

from neustream.policies.configured import Configured, configured
from vllm_patch.adapter import CAN_SPLIT, Adapter


def build(scheduler_config: Any, cache_config: Any, config: Mapping[str, Any] | None) -> Adapter:
    """The adapter around the configured policy. Raises ValueError (TableError) for a bad configuration."""
    made = _configured(config)
    return Adapter(
        made.policy,
        made.table,
        max_model_len=scheduler_config.max_model_len,
        default_slo=made.slo,
        on_miss=made.on_miss,
    )


def check_config(config: Mapping[str, Any] | None) -> None:
    """Raise ValueError for a configuration that `build` would refuse. Called before any model is loaded."""
    _configured(config)


build.check_config = check_config  # type: ignore[attr-defined]


def _configured(config: Mapping[str, Any] | None) -> Configured:
    return configured(config, where="step_policy_config", can_split=CAN_SPLIT, driver="vLLM 0.5.4")
