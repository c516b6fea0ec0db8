"""The command line of the LLM experiments, checked before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from exp.harness.options import add_common_arguments, check_policy, resolve_cv, resolve_device
from exp.harness.settings import LOADS
from exp.llm.model import Model
from neustream.catalog.machine import check_tensor_parallel
from neustream.cli.arguments import BadInput, Parser, at_least, numbers, parse_goodput, whole
from neustream.slo import parse_slo
from vllm_patch.engine import EngineUnavailable, check_device

STOCK = "vllm"
"""The policy's name that means none: stock vLLM, whose SLOs are measured only."""
CHUNKING = ("chunked",)
"""Policies that split prompts over steps. vLLM 0.5.4 does not do that under a step policy; the simulator does."""
PSLO = (3.0,)
DSLO = (1.5,)
MAX_TOKENS = {"cpu": 128, "cuda": 300}
GPU_REQUESTS = 500
CPU_SECONDS = 150.0
"""How long the default rates may take together on a CPU; the number of requests follows from it."""
LEAST_REQUESTS = 30
QUICK_REQUESTS, QUICK_TOKENS = 20, 16


def make_parser() -> Parser:
    """The flags of `python -m exp.llm`."""
    parser = Parser(
        prog="exp.llm",
        description="Serve a workload on vLLM under SLOs and print its goodput.",
        epilog=f"--policy {STOCK} is stock vLLM: no policy, SLOs are only measured. docs/experiments.md says more.",
    )
    add_common_arguments(parser, model="opt-125m", policy="neustream")
    parser.add_argument("--tp", type=whole(1), default=1, metavar="N", help="tensor parallelism (default 1)")
    parser.add_argument(
        "--pslo", type=numbers(at_least(1)), metavar="S,…", help="first token due by S × prefill alone (default 3)"
    )
    parser.add_argument(
        "--dslo", type=numbers(at_least(1)), metavar="S,…", help="further tokens by S × decode alone (default 1.5)"
    )
    parser.add_argument(
        "--goodput",
        nargs="+",
        metavar="NAME:MS",
        help="absolute SLOs instead of those scales: ttft:200 tpot:50 e2el:5000, of which a request must meet all",
    )
    parser.add_argument("--max-tokens", type=whole(1), metavar="N", help="tokens that each request generates")
    parser.add_argument("--dataset", type=Path, metavar="FILE", help="a ShareGPT JSON file to take the prompts from")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Fill in what depends on the machine and check what needs no model. Raises BadInput."""
    check_policy(options.policy, "llm", extra=[STOCK])
    if options.policy in CHUNKING:
        raise BadInput(f"policy {options.policy!r} splits prompts over steps, which vLLM 0.5.4 cannot: simulate it")
    options.cv = resolve_cv(options)
    options.absolute_slo = None
    if options.goodput:
        if options.pslo or options.dslo:
            raise BadInput("--goodput states absolute SLOs: give it or --pslo and --dslo, not both")
        options.absolute_slo = parse_goodput(options.goodput)
        try:
            parse_slo(options.absolute_slo)
        except ValueError as error:
            raise BadInput(f"--goodput: {error}") from error
    options.pslo = options.pslo or PSLO
    options.dslo = options.dslo or DSLO
    resolve_device(options)
    try:
        check_device(options.device)
    except EngineUnavailable as error:
        raise BadInput(str(error)) from error
    options.max_tokens = options.max_tokens or (QUICK_TOKENS if options.quick else MAX_TOKENS[options.device])


def default_requests(options: argparse.Namespace, capacity: float) -> int:
    """Requests per setting: the paper's 500 on a GPU; on a CPU what the default rates get through in a few minutes."""
    if options.quick:
        return QUICK_REQUESTS
    if options.device != "cpu":
        return GPU_REQUESTS
    count = int(CPU_SECONDS * capacity / sum(1 / load for load in LOADS))
    return min(max(count, LEAST_REQUESTS), GPU_REQUESTS)


def check_model(model: Model, options: argparse.Namespace, longest_prompt: int) -> None:
    """Raises BadInput if the device cannot run the model so, or a request would run past its last position."""
    try:
        check_tensor_parallel(model.shape, options.tp, options.device)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if longest_prompt + options.max_tokens > model.shape.max_positions:
        raise BadInput(
            f"prompts of up to {longest_prompt} tokens and --max-tokens {options.max_tokens} run past the "
            f"{model.shape.max_positions} positions of {model.name}; --max-tokens may be at most "
            f"{max(model.shape.max_positions - longest_prompt, 0)}"
        )


def sweep_axes(options: argparse.Namespace, rates: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    """The axes of the sweep: rate, cv, and the SLO scales unless the SLO is absolute."""
    axes = {"rate": rates, "cv": options.cv}
    if options.absolute_slo is None:
        axes |= {"pslo": options.pslo, "dslo": options.dslo}
    return axes
