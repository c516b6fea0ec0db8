"""The LLM bench: an engine, loaded once, and the jobs of each setting."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exp.harness.settings import Setting
from exp.llm.config import STOCK
from exp.llm.model import Model
from exp.llm.prompts import Prompts
from neustream.cli.arguments import RunFailed
from neustream.driver import Ask
from neustream.tables import LatencyTable
from neustream.workload import gamma_arrivals
from vllm_patch.driver import VllmDriver
from vllm_patch.engine import EngineUnavailable, load_engine, warm_up


def slo_of(setting: Setting, absolute: dict[str, float] | None) -> dict[str, float]:
    """The SLO of a setting's requests in its outside form; one object for the engine and the accounting."""
    return absolute or {"pslo": setting["pslo"], "dslo": setting["dslo"]}


class LlmBench:
    """Implements `exp.harness.runner.Bench` on vLLM."""

    def __init__(
        self,
        engine: Any,
        table: LatencyTable,
        prompts: Prompts,
        *,
        policy: str,
        num_requests: int,
        max_tokens: int,
        absolute_slo: dict[str, float] | None,
    ) -> None:
        self.engine = engine
        self.table = table
        self.prompts = prompts
        self.policy = policy
        self.num_requests = num_requests
        self.max_tokens = max_tokens
        self.absolute_slo = absolute_slo

    def asks(self, setting: Setting) -> list[Ask]:
        """The setting's requests; arrivals and prompts depend on rate, cv and seed alone."""
        offsets = gamma_arrivals(setting["rate"], setting["cv"], self.num_requests, setting.seed)
        prompts = self.prompts.make(self.num_requests, setting.seed)
        return [
            Ask(f"{setting.index}-{i}", float(offset), (prompt, self.max_tokens))
            for i, (offset, prompt) in enumerate(zip(offsets, prompts, strict=True))
        ]

    def driver(self, setting: Setting) -> VllmDriver:
        """The engine, for one setting, with a history of its own. The SLO is the default of all requests."""
        return VllmDriver(self.engine, table=self.table, slo=slo_of(setting, self.absolute_slo))


def load_bench(
    options: argparse.Namespace, model: Model, table: LatencyTable, table_file: Path, prompts: Prompts
) -> LlmBench:
    """Load the model and warm it up. Raises RunFailed where no engine can be loaded."""
    policy = None if options.policy == STOCK else {"policy": options.policy, "table": str(table_file)}
    try:
        with model.engine_folder() as folder:
            engine = load_engine(
                folder,
                device=options.device,
                dtype=options.dtype,
                tensor_parallel=options.tp,
                seed=options.seed,
                has_weights=model.has_weights,
                step_policy=policy,
            )
    except EngineUnavailable as error:
        raise RunFailed(str(error)) from error
    warm_up(engine, prompts.make(1, options.seed)[0])
    return LlmBench(
        engine,
        table,
        prompts,
        policy=options.policy,
        num_requests=options.requests,
        max_tokens=options.max_tokens,
        absolute_slo=options.absolute_slo,
    )
