"""The vLLM engine: loaded once, then a server for each setting."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exp.harness.runner import OnStep
from exp.llm.ledger import Ledger
from exp.llm.model import Model
from neustream.cli.arguments import RunFailed
from neustream.request import Request

FACTORY = "vllm_patch.factory:build"
KV_CACHE_GIB = "4"
WARM_UP_BATCHES = (1, 4)


def load_engine(model: Model, *, policy: str | None, table: Path, dtype: str, tensor_parallel: int, seed: int) -> Any:
    """An LLMEngine that serves the model; with `policy` None it schedules as stock vLLM does."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", KV_CACHE_GIB)
    # Without a tokenizer vLLM warns at every request, which would tear the progress bar apart.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vllm import EngineArgs, LLMEngine

    if not hasattr(EngineArgs, "step_policy"):
        raise RunFailed("this vLLM is not patched: run `bash install.sh`, or `python -m vllm_patch apply`")
    policy_options: dict[str, Any] = {}
    if policy is not None:
        config = {"policy": policy, "table": str(table)}
        policy_options = {"step_policy": FACTORY, "step_policy_config": config}
    with model.engine_folder() as folder:
        return LLMEngine.from_engine_args(
            EngineArgs(
                model=str(folder),
                load_format="auto" if model.has_weights else "dummy",
                skip_tokenizer_init=True,
                dtype=dtype,
                tensor_parallel_size=tensor_parallel,
                seed=seed,
                disable_log_stats=True,
                **policy_options,
            )
        )


def sampling(max_tokens: int) -> Any:
    """Greedy, and exactly so many tokens: with random weights an end of text means nothing."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)


def warm_up(engine: Any, prompt: list[int]) -> None:
    """Run a few steps, so that first-time costs of the kernels and the allocator are paid before any request."""
    for batch in WARM_UP_BATCHES:
        for i in range(batch):
            engine.add_request(f"warm-up-{batch}-{i}", {"prompt_token_ids": prompt}, sampling(4))
        while engine.has_unfinished_requests():
            engine.step()


class LlmServer:
    """Serves one setting on an engine that is idle. `slo` goes to the engine with each request, or None.

    Payloads are `(prompt_token_ids, max_tokens)`.
    """

    def __init__(
        self,
        engine: Any,
        ledger: Ledger,
        slo: Mapping[str, float] | None,
        on_step: OnStep,
        params: Callable[[int], Any] = sampling,
    ) -> None:
        self.engine = engine
        self.params = params
        self.ledger = ledger
        self.slo = slo
        self.on_step = on_step
        self.has_failed = False
        engine.scheduler[0].on_step = self._record_step

    @property
    def num_unfinished(self) -> int:
        return len(self.ledger.open)

    def submit(self, request_id: str, arrival: float, payload: tuple[list[int], int]) -> None:
        prompt, max_tokens = payload
        self.ledger.add(request_id, arrival, len(prompt))
        inputs = {"prompt_token_ids": prompt}
        options = {} if self.slo is None else {"slo": dict(self.slo)}
        self.engine.add_request(request_id, inputs, self.params(max_tokens), arrival_time=arrival, **options)

    def step(self) -> list[Request]:
        try:
            outputs = self.engine.step()
        except Exception:
            self.has_failed = True
            raise
        return [request for output in outputs if (request := self.ledger.update(output)) is not None]

    def abort_all(self) -> list[Request]:
        if self.ledger.open and not self.has_failed:
            self.engine.abort_request(list(self.ledger.open))
        return self.ledger.abort_all()

    def _record_step(self, step: Any) -> None:
        record: dict[str, Any] = {
            "time": step.start,
            "module": step.kind,
            "batch_size": step.num_seq_groups,
            "tokens": step.num_tokens,
            "seconds": step.seconds,
            "predicted_seconds": self.ledger.predict(step.kind, step.request_ids),
            "schedule_seconds": step.schedule_seconds,
            "decision_seconds": step.decision_seconds,
            "num_waiting": step.num_waiting,
            "num_running": step.num_running,
            "num_swapped": step.num_swapped,
            "num_preempted": step.num_preempted,
            "request_ids": list(step.request_ids),
            "rejected": [request_id for request_id, _ in step.rejected],
        }
        if step.error is not None:
            record["error"] = step.error
        self.on_step(record)
