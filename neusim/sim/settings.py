"""What `simulate.py` was asked for, checked and made into a sweep before anything runs."""

from __future__ import annotations

import argparse
import math
from typing import Any

from neusim.sim.device import Device, default_device
from neusim.sim.lengths import Asked, traced_requests
from neusim.sim.run import named_policy
from neusim.sim.sweep import (
    LLM_CV,
    MAX_TOKENS,
    PIPELINE_CV,
    Sweep,
    default_rate,
    default_steps,
    points,
)
from neustream.cli.arguments import parse_goodput
from neustream.policies import is_llm
from neustream.slo import MS_PER_S, parse_slo
from neustream.tables import LatencyTable, find_table
from neustream.workload import MEAN_OUTPUT, Bursts
from neustream.workload.classes import check_classes, parse_slo_class
from neustream.workload.traces import TracedRequest, mean_rate

NUM_REQUESTS = 500
TRACE_MAX_TOKENS = 1000
"""The most output tokens of a traced request where --max-tokens does not say."""


def seconds_range(text: str) -> tuple[float, float]:
    """An argparse type: `A:B`, seconds with 0 <= A < B."""
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected seconds as A:B, got {text!r}") from None
    if not 0 <= start < end < math.inf:
        raise argparse.ArgumentTypeError(f"must have 0 <= A < B, got {text}")
    return start, end


def spread(text: str) -> float | None:
    """An argparse type: a number, or None for `table`."""
    try:
        return None if text == "table" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or `table`, got {text!r}") from None


def at_least_one(text: str) -> float:
    """An argparse type: a finite number of at least 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def bursts(text: str) -> Bursts:
    """An argparse type: `SIZE:GAP`, requests in the mean and milliseconds between them."""
    try:
        size, gap = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected requests and milliseconds as SIZE:GAP, got {text!r}") from None
    try:
        return Bursts(size, gap / MS_PER_S)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def make_sweep(options: argparse.Namespace) -> Sweep:
    """Check everything that was asked for; raises ValueError saying what is wrong."""
    if not options.tables.is_dir():
        raise ValueError(f"--tables {options.tables} is not a folder")
    table = find_table(options.tables, options.device, options.model, options.tp)
    device = _device(options, table)
    for policy in options.policy:
        named_policy(policy, table, device)
    asked, trace = _requests(options, table)
    classes = tuple(parse_slo_class(text) for text in options.slo_class or ())
    check_classes(classes)
    axes = _axes(options, table, trace)
    for rate in axes["rate"] if options.burst is not None else ():
        options.burst.arrivals(rate, 0, options.seed)
    steps = None
    if not is_llm(table):
        steps = options.steps or default_steps(table.model)
        if steps is None:
            raise ValueError(f"give --steps lo:hi: how many denoising steps {table.model} takes is not known")
    return Sweep(
        table,
        device,
        options.policy,
        points(axes),
        len(trace) if trace else options.requests or NUM_REQUESTS,
        options.seed,
        steps,
        asked.max_tokens,
        options.bound,
        classes=classes,
        trace=trace,
        lengths=asked.kind,
        knows_lengths=options.oracle,
        bursts=options.burst,
    )


def _requests(options: argparse.Namespace, table: LatencyTable) -> tuple[Asked, tuple[TracedRequest, ...]]:
    """What was asked for of the requests, and those of a trace or with hidden lengths; see `traced_requests`."""
    if options.trace is None:
        for name in ("trace_scale", "trace_window"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} needs --trace")
    for name in ("trace", "lengths", "mean_output"):
        if getattr(options, name) is not None and not is_llm(table):
            raise ValueError(f"--{name.replace('_', '-')} is for language models; {table.model} is an image pipeline")
    varies = (options.lengths or ("trace" if options.trace else "fixed")) != "fixed"
    asked = Asked(
        options.lengths,
        options.trace,
        options.trace_window,
        options.requests,
        options.max_tokens or (TRACE_MAX_TOKENS if varies else MAX_TOKENS),
        options.mean_output,
        options.seed,
    )
    if options.oracle and not varies:
        raise ValueError("--oracle needs outputs whose lengths vary: --lengths lognormal, or a trace")
    if options.burst is not None and options.cv is not None:
        raise ValueError("--burst says how requests cluster: give it or --cv, not both")
    trace = traced_requests(asked, NUM_REQUESTS)
    has_times = bool(trace) and trace[0].offset is not None
    if has_times and (options.rate or options.cv or options.burst):
        flags = "--burst does" if options.burst else "--rate and --cv do"
        raise ValueError(f"{flags} not apply: {options.trace} has times; give --trace-scale")
    if trace and not has_times and options.trace_scale:
        raise ValueError(f"--trace-scale does not apply: {options.trace} has no times; give --rate")
    return asked, trace


def _slo_axes(options: argparse.Namespace, table: LatencyTable) -> dict[str, tuple[float, ...]]:
    """The axes of the SLO: scales, or the one absolute SLO; none where classes bring their own."""
    scales = [name for name in ("pslo", "dslo", "slo_scale") if getattr(options, name) is not None]
    if options.slo_class:
        if scales or options.goodput:
            raise ValueError("--slo-class states each class's SLO: give no other SLO beside it")
        return {}
    if options.goodput:
        if scales:
            raise ValueError(f"--goodput states absolute SLOs: give it or --{scales[0].replace('_', '-')}, not both")
        slo = parse_goodput(options.goodput)
        parse_slo(slo)
        return {name: (value,) for name, value in slo.items()}
    if is_llm(table):
        return {"pslo": options.pslo or (3.0,), "dslo": options.dslo or (1.5,)}
    return {"slo_scale": options.slo_scale or (3.0,)}


def _axes(options: argparse.Namespace, table: LatencyTable, trace: tuple[TracedRequest, ...]) -> dict[str, Any]:
    if is_llm(table):
        kind, others = "a language model", ["slo_scale", "steps"]
    else:
        kind, others = "an image pipeline", ["pslo", "dslo", "max_tokens", "kv_blocks"]
    for name in others:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} does not apply: {table.model} is {kind}")
    slo = _slo_axes(options, table)
    if trace and trace[0].offset is not None:
        scales = options.trace_scale or (1.0,)
        return {"rate": (mean_rate(trace),), "cv": (LLM_CV,), "trace_scale": scales, **slo}
    rates = options.rate
    if rates is None:
        tightest = {name: min(values) for name, values in slo.items()}
        rate = default_rate(table, tightest, _mean_output(options))
        if rate is None:
            raise ValueError(f"give --rate: there is no published one for {table.model}")
        rates = (rate,)
    return {"rate": rates, "cv": options.cv or (LLM_CV if is_llm(table) else PIPELINE_CV,), **slo}


def _mean_output(options: argparse.Namespace) -> int:
    """Output tokens that a request has in the mean, or what it asks for where that is less."""
    if options.lengths != "lognormal":
        return int(options.max_tokens or MAX_TOKENS)
    mean = round(options.mean_output or MEAN_OUTPUT)
    return max(min(mean, options.max_tokens or TRACE_MAX_TOKENS), 1)


def _device(options: argparse.Namespace, table: LatencyTable) -> Device:
    chosen: dict[str, Any] = {
        "overhead": options.overhead_ms / MS_PER_S,
        "slowness": options.slowness,
        "contention": options.contention,
        "jitter": _measured_spread(table) if options.jitter is None else options.jitter,
        "prefix_cache": options.prefix_cache,
        "can_split": not options.whole_prefills,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
    }
    if options.layout:
        chosen["layout"] = options.layout
    if options.handover_ms is not None:
        chosen["handover"] = options.handover_ms / MS_PER_S
    if options.margin_ms is not None:
        chosen["margin"] = options.margin_ms / MS_PER_S
    if options.kv_blocks is not None:
        chosen["kv_blocks"] = options.kv_blocks or None
    return default_device(table, **chosen)


def _measured_spread(table: LatencyTable) -> float:
    measured = table.info.get("spread")
    if not isinstance(measured, int | float):
        raise ValueError(f"--jitter table: the {table.origin} table of {table.model} does not say how steps spread")
    return float(measured)
