"""The command line of the LLM experiments, checked before anything is loaded."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exp.harness.options import Options, add_common_arguments, check_policy, chosen_device, common_options
from exp.llm.model import Model, resolve_model
from exp.llm.prompts import Prompts, read_prompts, read_traced
from neusim.sim.settings import seconds_range
from neustream.catalog.machine import check_tensor_parallel
from neustream.cli.arguments import BadInput, above, at_least, numbers, parse_goodput, whole
from neustream.latency import Shape
from neustream.route import DECODE
from neustream.slo import MS_PER_S, parse_slo
from neustream.tables import LatencyTable, table_name

ENGINES = ("v0", "v1")
"""vLLM 0.5.4, patched, and today's vLLM with the plug-in; each has an environment of its own."""
STOCK = "vllm"
"""The policy's name that means none: stock vLLM, whose SLOs are measured only."""
PSLO = (3.0,)
DSLO = (1.5,)
MAX_TOKENS = {"cpu": 128, "cuda": 300}
QUICK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class LlmOptions(Options):
    """What an LLM experiment runs."""

    engine: str
    """One of ENGINES."""
    served: Model
    prompts: Prompts
    tp: int
    pslo: tuple[float, ...]
    dslo: tuple[float, ...]
    absolute_slo: Mapping[str, float] | None
    """An SLO in milliseconds (the outside form of `parse_slo`) that takes the place of the scales."""
    max_tokens: int
    mean_output: float | None = None
    """Mean of log-normal output lengths, which policies do not know; None: each output has `max_tokens`."""

    @property
    def tokens(self) -> int:
        """Tokens of an output in the mean."""
        return self.max_tokens if self.mean_output is None else max(round(min(self.mean_output, self.max_tokens)), 1)

    @property
    def table_name(self) -> str:
        return table_name(self.common.model, self.tp, engine=self.engine)

    @property
    def tensor_parallel(self) -> int:
        return self.tp

    @property
    def profiled(self) -> str:
        return str(self.served.folder or self.served.name)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m exp.llm`."""
    add_common_arguments(parser, model="opt-125m", policy="neustream")
    parser.add_argument("--engine", default="v0", help="v0: vLLM 0.5.4, patched (default); v1: today's vLLM")
    parser.set_defaults(model="opt-125m")
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
    parser.add_argument(
        "--lengths",
        choices=("fixed", "lognormal"),
        default="fixed",
        help="of outputs: all --max-tokens, or log-normal ones that policies do not know (default fixed)",
    )
    parser.add_argument(
        "--mean-output", type=whole(1), metavar="N", help="of log-normal outputs (default: half of --max-tokens)"
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="take the requests from a trace, whose outputs end unforeseen",
    )
    parser.add_argument("--trace-window", type=seconds_range, metavar="A:B", help="only its seconds A to B")
    parser.add_argument(
        "--trace-lengths",
        type=numbers(above(0)),
        metavar="P,O",
        help="how many times as long its prompts and outputs are made (default 1,1)",
    )
    parser.add_argument("--dataset", type=Path, metavar="FILE", help="a ShareGPT JSON file to take the prompts from")


def make_options(given: argparse.Namespace) -> LlmOptions:
    """Check the command line and fill in what depends on the machine. Raises BadInput."""
    if given.engine not in ENGINES:
        raise BadInput(f"unknown engine {given.engine!r}; there are {', '.join(ENGINES)}")
    engine = engine_module(given.engine)
    check_policy(given.policy, "llm", extra=[STOCK], can_split=engine.CAN_SPLIT, driver=engine.NAME)
    absolute_slo = _absolute_slo(given)
    device = chosen_device(given.device)
    served = resolve_model(given.model)
    max_tokens = given.max_tokens or (QUICK_TOKENS if given.quick else MAX_TOKENS[device])
    if given.mean_output is not None and given.lengths == "fixed":
        raise BadInput("--mean-output needs --lengths lognormal")
    mean_output = None if given.lengths == "fixed" else float(given.mean_output or max(max_tokens // 2, 1))
    prompts = _prompts(given, served, max_tokens)
    options = LlmOptions(
        common=common_options(given, device=device, model=served.name),
        engine=given.engine,
        served=served,
        prompts=prompts,
        tp=given.tp,
        pslo=given.pslo or PSLO,
        dslo=given.dslo or DSLO,
        absolute_slo=absolute_slo,
        max_tokens=max_tokens,
        mean_output=mean_output,
    )
    _check_fits(options)
    return options


def engine_module(name: str) -> Any:
    """What an experiment needs of the engine of that name: the module `exp.llm.engine_<name>`."""
    return importlib.import_module(f"exp.llm.engine_{name}")


def _prompts(given: argparse.Namespace, served: Model, max_tokens: int) -> Prompts:
    """Where the requests come from. Raises BadInput."""
    if given.trace is None:
        for flag in ("trace_window", "trace_lengths"):
            if getattr(given, flag):
                raise BadInput(f"--{flag.replace('_', '-')} is about a trace: give --trace too")
        return read_prompts(given.dataset, served)
    if given.dataset is not None:
        raise BadInput("requests come from --trace or from --dataset, not from both")
    if given.lengths != "fixed":
        raise BadInput("outputs are as long as the trace says: leave out --lengths")
    factors = given.trace_lengths or (1.0, 1.0)
    if len(factors) != 2:
        raise BadInput("--trace-lengths takes two numbers, of prompts and of outputs, as 0.25,0.33")
    return read_traced(given.trace, given.trace_window, factors, served, max_tokens)


def _absolute_slo(given: argparse.Namespace) -> Mapping[str, float] | None:
    if not given.goodput:
        return None
    if given.pslo or given.dslo:
        raise BadInput("--goodput states absolute SLOs: give it or --pslo and --dslo, not both")
    slo = parse_goodput(given.goodput)
    try:
        parse_slo(slo)
    except ValueError as error:
        raise BadInput(f"--goodput: {error}") from error
    return slo


def _check_fits(options: LlmOptions) -> None:
    """Raises BadInput if the device cannot run the model so, or a request would run past its last position."""
    shape, longest = options.served.shape, options.prompts.longest()
    try:
        engine_module(options.engine).check_device(options.common.device)
        check_tensor_parallel(shape, options.tp, options.common.device)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if longest + options.max_tokens > shape.max_positions:
        raise BadInput(
            f"prompts of up to {longest} tokens and --max-tokens {options.max_tokens} run past the "
            f"{shape.max_positions} positions of {shape.name}; --max-tokens may be at most "
            f"{max(shape.max_positions - longest, 0)}"
        )


def sweep_axes(options: LlmOptions, rates: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    """The axes of the sweep: rate, cv, and the SLO scales unless the SLO is absolute."""
    axes = {"rate": rates, "cv": options.common.cv}
    if options.absolute_slo is None:
        axes |= {"pslo": options.pslo, "dslo": options.dslo}
    return axes


def pace_scale(table: LatencyTable, slo: Mapping[str, float] | None, dslo: float, context: int) -> float:
    """The pace that the SLO asks for, as a multiple of the standalone decode step; at least 1."""
    if slo is None:
        return dslo
    if "tpot_ms" not in slo:
        return DSLO[0]
    step = table[DECODE].predict(Shape(1, 0, 0, context))
    return max(slo["tpot_ms"] / MS_PER_S / step, 1.0)
