"""Loads the patched vLLM's engine: the environment variables, the engine's arguments and the checks, in one place."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FACTORY = "vllm_patch.factory:build"
KV_CACHE_GIB = 4
WARM_UP_BATCHES = (1, 4)
TOLD_TOKENS = "max_tokens"
"""Field of an SLO: what a policy takes for a request's maximum, where its text is known to end earlier."""
ENVIRONMENT = {
    # Without a tokenizer vLLM warns at every request, which would tear a progress bar apart.
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class EngineUnavailable(ValueError):
    """No engine can be loaded so on this machine; the message says why, in a line."""


def built_for() -> str:
    """The device that the installed vLLM was built for, `cpu` or `cuda`. Imports no framework.

    Raises EngineUnavailable where none is installed.
    """
    try:
        return "cpu" if "cpu" in version("vllm") else "cuda"
    except PackageNotFoundError as error:
        raise EngineUnavailable("vLLM is not installed: run `bash install.sh`") from error


def check_device(device: str) -> None:
    """Check that the installed vLLM runs on `device`; takes no time. Raises EngineUnavailable."""
    built = built_for()
    if device != built:
        target = "--cuda" if built == "cpu" else "--cpu"
        raise EngineUnavailable(
            f"this vLLM was built for {built}, asked for is device {device}: "
            f"use --device {built}, or run `bash install.sh {target}`"
        )


def cpu_cache_gib() -> int:
    """GiB of the KV cache of an engine on a CPU, where nothing else is asked for: the environment's, else KV_CACHE_GIB.

    Raises ValueError for a VLLM_CPU_KVCACHE_SPACE that is no whole number.
    """
    text = os.environ.get("VLLM_CPU_KVCACHE_SPACE", str(KV_CACHE_GIB))
    if not text.strip().isdecimal():
        raise ValueError(f"VLLM_CPU_KVCACHE_SPACE must be whole GiB, got {text!r}")
    return int(text) or KV_CACHE_GIB  # vLLM takes 0 for its default, which is ours


def load_engine(
    folder: Path,
    *,
    device: str,
    dtype: str = "auto",
    tensor_parallel: int = 1,
    seed: int = 0,
    has_weights: bool = False,
    step_policy: Mapping[str, Any] | None = None,
    cache_gib: int | None = None,
    **options: Any,
) -> Any:
    """An LLMEngine that serves the model in `folder`, which holds at least its `config.json`.

    `step_policy` is the configuration of a policy (see `vllm_patch.factory`); without one vLLM schedules as ever.
    `cache_gib` is the KV cache's memory on a CPU; by default what VLLM_CPU_KVCACHE_SPACE says, else 4. Without weights
    they are random. `options` go to vLLM's EngineArgs.

    Raises EngineUnavailable where vLLM is missing, not patched, or built for another device, ValueError for a bad
    policy configuration, both before the model is loaded.
    """
    check_device(device)
    if cache_gib is not None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(cache_gib)
    for name, value in {"VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB), **ENVIRONMENT}.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import EngineArgs, LLMEngine
    except ImportError as error:
        raise EngineUnavailable(f"vLLM cannot be imported ({error}): run `bash install.sh`") from error
    if find_spec("vllm.core.step_policy") is None:
        raise EngineUnavailable("this vLLM is not patched: run `bash install.sh`, or `python -m vllm_patch apply`")
    if step_policy is not None:
        options |= {"step_policy": FACTORY, "step_policy_config": dict(step_policy)}
    with sigint_kept_from_children():
        return LLMEngine.from_engine_args(
            EngineArgs(
                model=str(folder),
                load_format="auto" if has_weights else "dummy",
                skip_tokenizer_init=True,
                dtype=dtype,
                device=device,
                tensor_parallel_size=tensor_parallel,
                seed=seed,
                disable_log_stats=True,
                **options,
            )
        )


@contextmanager
def sigint_kept_from_children() -> Iterator[None]:
    """Processes that this one starts meanwhile, through `multiprocessing`, never see SIGINT; this one does.

    A terminal's Ctrl-C goes to every process of its group. A tensor-parallel worker that acted on it would leave its
    loop, and the step that the engine wants to finish would wait for it for ever. Workers still end by SIGTERM.
    """
    # Starting the tracker unblocks SIGINT, so that it must run already.
    resource_tracker.ensure_running()
    start = BaseProcess.start

    def start_shielded(process: BaseProcess) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a child inherits it
        try:
            start(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    BaseProcess.start = start_shielded  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        BaseProcess.start = start  # type: ignore[method-assign]


def sampling(max_tokens: int) -> Any:
    """Greedy, and exactly so many tokens: with random weights an end of text means nothing."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)


def warm_up(engine: Any, prompt: list[int]) -> None:
    """Run a few steps, so that first-time costs of the kernels and the allocator are paid before any request.

    What the steps took is no part of any history: a driver begins with a new one.
    """
    for batch in WARM_UP_BATCHES:
        for i in range(batch):
            engine.add_request(f"warm-up-{batch}-{i}", {"prompt_token_ids": prompt}, sampling(4))
        while engine.has_unfinished_requests():
            engine.step()
