"""The LLM bench: an engine, loaded once, and the jobs of each setting."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exp.harness.client import Job
from exp.harness.runner import OnStep
from exp.harness.settings import Setting
from exp.llm.config import STOCK
from exp.llm.engine import LlmServer, load_engine, warm_up
from exp.llm.ledger import Ledger
from exp.llm.model import Model
from exp.llm.prompts import Prompts
from neustream.slo import parse_slo
from neustream.tables import LatencyTable
from neustream.workload import gamma_arrivals


def slo_of(setting: Setting, absolute: dict[str, float] | None) -> dict[str, float]:
    """The SLO of a setting's requests in its outside form; one object for the engine and the accounting."""
    return absolute or {"pslo": setting["pslo"], "dslo": setting["dslo"]}


class LlmBench:
    """Implements `exp.harness.Bench` on vLLM."""

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

    def jobs(self, setting: Setting) -> list[Job]:
        """The setting's requests; arrivals and prompts depend on rate, cv and seed alone."""
        offsets = gamma_arrivals(setting["rate"], setting["cv"], self.num_requests, setting.seed)
        prompts = self.prompts.make(self.num_requests, setting.seed)
        return [
            Job(f"{setting.index}-{i}", float(offset), (prompt, self.max_tokens))
            for i, (offset, prompt) in enumerate(zip(offsets, prompts, strict=True))
        ]

    def server(self, setting: Setting, on_step: OnStep) -> LlmServer:
        """The engine, for one setting. Stock vLLM is not told of the SLO; the ledger judges by it all the same."""
        slo = slo_of(setting, self.absolute_slo)
        ledger = Ledger(parse_slo(slo), self.table, self.max_tokens)
        return LlmServer(self.engine, ledger, None if self.policy == STOCK else slo, on_step)


def load_bench(
    options: argparse.Namespace, model: Model, table: LatencyTable, table_file: Path, prompts: Prompts
) -> LlmBench:
    """Load the model and warm it up."""
    engine = load_engine(
        model,
        policy=None if options.policy == STOCK else options.policy,
        table=table_file,
        dtype=options.dtype,
        tensor_parallel=options.tp,
        seed=options.seed,
    )
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
