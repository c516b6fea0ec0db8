"""What `--additional-config '{"neustream": {…}}'` may say, and what of vLLM a step policy does not go with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neustream.ledger import split_slo
from neustream.policies.base import StepPolicy
from neustream.policies.configured import configured
from neustream.request import OnMiss
from neustream.slo import ScaleSlo, parse_slo
from neustream.tables import LatencyTable

KEY = "neustream"
"""The key of vLLM's additional configuration that is ours."""
WHERE = f"additional_config[{KEY!r}]"
CLASSES = "slo_classes"
VERSIONS = ("0.30", "0.31", "0.32", "0.33")
"""Versions of vLLM whose scheduler has the parts that are used here."""


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """What the scheduler is made of. `policy` None: vLLM schedules as ever, and its steps are only watched."""

    policy: StepPolicy | None = None
    table: LatencyTable | None = None
    slo: Mapping[str, Any] | None = None
    on_miss: OnMiss = "reject"
    classes: Mapping[str, Mapping[str, Any]] | None = None
    """SLO (outside form, `on_miss` among its keys if wanted) by name of the class."""


def read_config(additional: Mapping[str, Any] | None) -> PluginConfig:
    """The plug-in's part of vLLM's additional configuration.

    Its keys are those of `neustream.policies.configured` and `slo_classes`, a mapping of names to SLOs. Without the key
    `neustream`, or with no policy in it, nothing is scheduled otherwise. Raises ValueError, one line.
    """
    config = (additional or {}).get(KEY)
    if config is None:
        return PluginConfig()
    if isinstance(config, Mapping) and config.get("policy", "") is None:  # to watch the stock scheduler
        made_slo, on_miss = config.get("slo"), config.get("on_miss", "reject")
        return PluginConfig(None, None, made_slo, on_miss, _classes(config, None))
    made = configured(config, where=WHERE, can_split=True, driver="today's vLLM", more=frozenset({CLASSES}))
    return PluginConfig(made.policy, made.table, made.slo, made.on_miss, _classes(config, made.table))


def _classes(config: Mapping[str, Any], table: LatencyTable | None) -> Mapping[str, Mapping[str, Any]]:
    classes = config.get(CLASSES) or {}
    if not isinstance(classes, Mapping):
        raise ValueError(f"{WHERE}: {CLASSES} must map names to SLOs, got a {type(classes).__name__}")
    for name, slo in classes.items():
        try:
            fields, _ = split_slo(slo, "reject")
            parsed = parse_slo(fields)
        except ValueError as error:
            raise ValueError(f"{WHERE}: {CLASSES}: {name}: {error}") from error
        if isinstance(parsed, ScaleSlo) and table is None:
            raise ValueError(f"{WHERE}: {CLASSES}: {name}: an SLO given as a scale needs 'table'")
    return classes


def check_version(version: str) -> None:
    """Raise ValueError for a version of vLLM that nobody has looked at."""
    if not version.startswith(tuple(f"{known}." for known in VERSIONS)):
        raise ValueError(
            f"the step-policy scheduler knows vLLM {VERSIONS[0]} to {VERSIONS[-1]}, this is {version}: "
            "install one of those, or serve without --scheduler-cls"
        )


def check_engine(vllm_config: Any) -> None:
    """Raise ValueError for what a step policy does not go with, by vLLM's own configuration, in one line."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    refused = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "a KV connector": vllm_config.kv_transfer_config is not None,
        "an encoder-cache connector": getattr(vllm_config, "ec_transfer_config", None) is not None,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "a pooling model": model is not None and model.runner_type == "pooling",
        "an encoder-decoder model": model is not None and model.is_encoder_decoder,
    }
    for what, is_asked in refused.items():
        if is_asked:
            raise ValueError(f"a step policy does not go with {what}; leave it out, or serve without --scheduler-cls")
    if not vllm_config.scheduler_config.enable_chunked_prefill:
        raise ValueError("a step policy needs chunked prefill, which this configuration switches off")
