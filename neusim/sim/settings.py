"""What `simulate.py` was asked for, checked and made into a sweep before anything runs."""

from __future__ import annotations

import argparse
import math
from typing import Any

from neusim.sim.device import Device, default_device
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
from neustream.workload.classes import check_classes, parse_slo_class
from neustream.workload.traces import TracedRequest, mean_rate, read_trace, window

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


def make_sweep(options: argparse.Namespace) -> Sweep:
    """Check everything that was asked for; raises ValueError saying what is wrong."""
    if not options.tables.is_dir():
        raise ValueError(f"--tables {options.tables} is not a folder")
    table = find_table(options.tables, options.device, options.model, options.tp)
    device = _device(options, table)
    for policy in options.policy:
        named_policy(policy, table, device)
    trace = _trace(options, table)
    classes = tuple(parse_slo_class(text) for text in options.slo_class or ())
    check_classes(classes)
    axes = _axes(options, table, trace)
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
        options.max_tokens or (TRACE_MAX_TOKENS if trace else MAX_TOKENS),
        options.bound,
        classes=classes,
        trace=trace,
    )


def _trace(options: argparse.Namespace, table: LatencyTable) -> tuple[TracedRequest, ...]:
    """The requests of --trace, at most --requests of them where that is given; empty without a trace."""
    if options.trace is None:
        for name in ("trace_scale", "trace_window"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} needs --trace")
        return ()
    if not is_llm(table):
        raise ValueError(f"--trace is for language models; {table.model} is an image pipeline")
    trace = read_trace(options.trace)
    has_times = trace[0].offset is not None
    if has_times and (options.rate or options.cv):
        raise ValueError(f"--rate and --cv do not apply: {options.trace} has times; give --trace-scale")
    if not has_times and (options.trace_scale or options.trace_window):
        raise ValueError(f"--trace-scale and --trace-window do not apply: {options.trace} has no times; give --rate")
    if options.trace_window is not None:
        trace = window(trace, *options.trace_window)
    return tuple(trace[: options.requests] if options.requests is not None else trace)


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
        rate = default_rate(table, tightest, options.max_tokens or MAX_TOKENS)
        if rate is None:
            raise ValueError(f"give --rate: there is no published one for {table.model}")
        rates = (rate,)
    return {"rate": rates, "cv": options.cv or (LLM_CV if is_llm(table) else PIPELINE_CV,), **slo}


def _device(options: argparse.Namespace, table: LatencyTable) -> Device:
    chosen: dict[str, Any] = {
        "overhead": options.overhead_ms / MS_PER_S,
        "slowness": options.slowness,
        "contention": options.contention,
        "jitter": _measured_spread(table) if options.jitter is None else options.jitter,
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
