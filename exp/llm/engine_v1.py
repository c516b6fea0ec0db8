"""The experiments' engine `v1`: today's vLLM, its own scheduler or ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neustream.driver import Driver
from neustream.tables import LatencyTable
from vllm_plugin.driver import PluginDriver
from vllm_plugin.engine import EngineUnavailable as EngineUnavailable
from vllm_plugin.engine import check_device as check_device
from vllm_plugin.engine import load_engine, warm_up

NAME = "today's vLLM"
CAN_SPLIT = True


def load(
    folder: Path, *, device: str, dtype: str, tp: int, seed: int, has_weights: bool, policy: Mapping[str, Any] | None
) -> Any:
    """The engine; without a policy vLLM schedules by itself, and is watched."""
    return load_engine(
        folder,
        dtype=dtype,
        seed=seed,
        has_weights=has_weights,
        step_policy=policy,
        tensor_parallel_size=tp,
        enforce_eager=device == "cpu",
    )


def warm(engine: Any, prompt: list[int]) -> None:
    """Pay first-time costs before any request."""
    warm_up(engine, prompt)


def driver(engine: Any, table: LatencyTable, slo: Mapping[str, float]) -> Driver:
    """A driver of the idle engine, whose requests have this SLO unless they say otherwise.

    What the engine remembers of earlier prompts goes: settings of one run send the same prompts, and the second would
    find them all in the prefix cache.
    """
    engine.reset_prefix_cache()
    return PluginDriver(engine, table=table, slo=slo)
