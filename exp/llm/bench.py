"""The LLM bench: an engine, loaded once, the requests of each setting, and a driver for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exp.harness.settings import Setting
from exp.llm.config import STOCK, LlmOptions, engine_module
from exp.llm.prompts import Prompts
from neustream.cli.arguments import RunFailed
from neustream.driver import Ask, Driver
from neustream.tables import LatencyTable
from neustream.workload import output_lengths


def slo_of(setting: Setting, absolute: Mapping[str, float] | None) -> Mapping[str, float]:
    """The SLO of a setting's requests in its outside form; one object for the engine and the accounting."""
    return absolute or {"pslo": setting["pslo"], "dslo": setting["dslo"]}


@dataclass(frozen=True, slots=True)
class LlmBench:
    """Implements `exp.harness.runner.Bench` on vLLM."""

    kind: Any
    """The module of its kind of engine: `exp.llm.engine_v0`, `…_v1`."""
    engine: Any
    table: LatencyTable
    prompts: Prompts
    num_requests: int
    max_tokens: int
    absolute_slo: Mapping[str, float] | None = None
    mean_output: float | None = None
    """Mean of log-normal output lengths, which policies do not know; None: each output has `max_tokens`."""

    def asks(self, setting: Setting) -> list[Ask]:
        """The setting's requests; arrivals, prompts and output lengths depend on rate, cv and seed alone."""
        prompts = self.prompts.make(self.num_requests, setting.seed)
        offsets = self.prompts.arrivals(setting["rate"], setting["cv"], self.num_requests, setting.seed)
        ends = self.prompts.outputs(self.num_requests, setting.seed, self.max_tokens)
        if self.mean_output is not None:
            ends = output_lengths(self.num_requests, setting.seed, mean=self.mean_output).tolist()
        return [
            Ask(f"{setting.index}-{i}", float(offset), (prompt, self.max_tokens, min(end, self.max_tokens)))
            for i, (offset, prompt, end) in enumerate(zip(offsets, prompts, ends, strict=True))
        ]

    def driver(self, setting: Setting) -> Driver:
        """The engine, for one setting, with a history of its own. The SLO is the default of all requests."""
        return self.kind.driver(self.engine, self.table, slo_of(setting, self.absolute_slo))  # type: ignore[no-any-return]


def load_bench(options: LlmOptions, table: LatencyTable, table_file: Path, num_requests: int) -> LlmBench:
    """Load the model and warm it up. Raises RunFailed where no engine can be loaded."""
    common, kind = options.common, engine_module(options.engine)
    policy = None if common.policy == STOCK else {"policy": common.policy, "table": str(table_file)}
    try:
        with options.served.engine_folder() as folder:
            engine = kind.load(
                folder,
                device=common.device,
                dtype=common.dtype or "auto",
                tp=options.tp,
                seed=common.seed,
                has_weights=options.served.has_weights,
                policy=policy,
            )
    except kind.EngineUnavailable as error:
        raise RunFailed(str(error)) from error
    kind.warm(engine, options.prompts.make(1, common.seed)[0])
    return LlmBench(
        kind,
        engine,
        table,
        options.prompts,
        num_requests,
        options.max_tokens,
        options.absolute_slo,
        options.mean_output,
    )
