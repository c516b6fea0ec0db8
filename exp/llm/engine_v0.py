"""The experiments' engine `v0`: vLLM 0.5.4, patched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neustream.driver import Driver
from neustream.tables import LatencyTable
from vllm_patch.adapter import CAN_SPLIT as CAN_SPLIT
from vllm_patch.driver import VllmDriver
from vllm_patch.engine import EngineUnavailable as EngineUnavailable
from vllm_patch.engine import check_device as check_device
from vllm_patch.engine import load_engine, warm_up

NAME = "vLLM 0.5.4"


def load(
    folder: Path, *, device: str, dtype: str, tp: int, seed: int, has_weights: bool, policy: Mapping[str, Any] | None
) -> Any:
    """The engine, without a policy where there is none. Raises ValueError (EngineUnavailable) where it cannot be."""
    return load_engine(
        folder,
        device=device,
        dtype=dtype,
        tensor_parallel=tp,
        seed=seed,
        has_weights=has_weights,
        step_policy=policy,
    )


def warm(engine: Any, prompt: list[int]) -> None:
    """Pay first-time costs before any request."""
    warm_up(engine, prompt)


def driver(engine: Any, table: LatencyTable, slo: Mapping[str, float]) -> Driver:
    """A driver of the idle engine, whose requests have this SLO unless they say otherwise."""
    return VllmDriver(engine, table=table, slo=slo)
