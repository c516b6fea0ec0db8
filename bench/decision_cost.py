"""What one decision costs: the median time of `plan` with n running and n waiting requests, per policy.

    python bench/decision_cost.py [--policies neustream,fcfs] [--sizes 64,256] [--opcodes]

The budget: 200 µs at 64 + 64, 1 ms at 256 + 256, growing no faster than n log n.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
import statistics
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from neustream import POLICIES, LatencyTable, Limits, Request, ScaleSlo, Stage, Streams, make_policy
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.policies import policies_for
from neustream.route import llm_route, pipeline_route

LLM = LatencyTable(
    "opt-bench",
    "bench",
    {
        "prefill": TokensLatency((0.01, 2e-4, 1e-9)),
        "decode": ContextLatency((0.03, 1e-7), (1, 64, 256), (0.03, 0.05, 0.09)),
    },
)
LOOP = LatencyTable(
    "dit-bench",
    "bench",
    {
        "denoise": BatchLatency(tuple(range(1, 65)), tuple(0.01 + 0.0005 * b for b in range(1, 65))),
        "vae": BatchLatency((1, 2, 4), (0.01, 0.02, 0.04)),
    },
)


EASY = ScaleSlo(50.0, 4.0)
Made = tuple[Streams, float]
"""Requests, and the time at which a policy is asked."""


def llm_streams(count: int, slo: ScaleSlo = EASY, now: float = 0.05) -> Made:
    """`count` waiting and `count` running requests, all of which can still make it."""
    streams = Streams(LLM.modules)
    for i in range(2 * count):
        size = 10 + 37 * i % 390
        route = llm_route(300)
        request = Request(f"r{i}", 0.0, slo.bind(0.0, route, size, LLM), route, size)
        if i < count:
            request.advance(0.01)
            for _ in range(i % 50):
                request.advance(0.02)
        streams.add(request)
    return streams, now


def overloaded_llm(count: int) -> Made:
    """SLOs that by far not all of them can meet; some of the waiting are late already."""
    return llm_streams(count, ScaleSlo(8.0, 1.5), 0.35)


def preempted_llm(count: int) -> Made:
    """Every other running request has been preempted, and most of those are late."""
    streams, now = overloaded_llm(count)
    for request in list(streams["decode"])[::2]:
        streams.preempt(request)
    return streams, now


def demoted(made: Made) -> Made:
    """Every third request is demoted, waiting or running."""
    streams, now = made
    for request in list(streams)[::3]:
        streams.demote(request)
    return streams, now


def loop_streams(count: int, scale: float = 30.0) -> Made:
    """`count` requests in the middle of their steps and `count` that have not begun."""
    streams = Streams(LOOP.modules)
    for i in range(2 * count):
        route: tuple[Stage, ...] = pipeline_route(LOOP.modules, 200 + i % 50)
        request = Request(f"r{i}", i * 1e-3, ScaleSlo(scale).bind(i * 1e-3, route, 1, LOOP), route)
        for _ in range(i % 50 if i < count else 0):
            request.advance(0.02)
        request.passes = i % 7
        streams.add(request)
    return streams, 1.0


def overloaded_loop(count: int) -> Made:
    """The same under SLOs that by far not all of them can meet: whoever chooses among them has most to do."""
    return loop_streams(count, 3.0)


STATES: list[tuple[str, LatencyTable, Callable[[int], Made]]] = [
    ("llm", LLM, llm_streams),
    ("llm, overloaded", LLM, overloaded_llm),
    ("llm, preempted", LLM, preempted_llm),
    ("llm, demoted", LLM, lambda count: demoted(llm_streams(count))),
    ("loop", LOOP, loop_streams),
    ("loop, overloaded", LOOP, overloaded_loop),
    ("loop, demoted", LOOP, lambda count: demoted(loop_streams(count))),
]


def decision(policy_name: str, table: LatencyTable, make: Callable[[int], Made], count: int) -> Callable[[], object]:
    """A function that takes one decision, always the same."""
    streams, now = make(count)
    policy = make_policy(policy_name, table)
    limits = Limits()
    if table is LLM:
        limits = Limits(max_resident=4 * count, max_work=4096, free_blocks=100_000, block_size=16, can_split=True)
    return lambda: policy.plan(now, streams, limits)


def median_cost(decide: Callable[[], object], repeats: int) -> float:
    """Median microseconds of one decision."""
    costs = []
    for _ in range(repeats):
        start = time.perf_counter()
        decide()
        costs.append(time.perf_counter() - start)
    return statistics.median(costs) * 1e6


def num_opcodes(decide: Callable[[], object]) -> int:
    """Python instructions of one decision: the same on every machine, however busy it is."""
    total = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal total
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        total += event == "opcode"
        return trace

    decide()  # what is remembered from one decision to the next is not what a decision costs
    known = sys.gettrace()
    sys.settrace(trace)
    try:
        decide()
    finally:
        sys.settrace(known)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--policies", default=",".join(POLICIES), help="comma-separated names")
    parser.add_argument("--sizes", default="16,64,256,1024", help="comma-separated numbers of running = waiting")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--opcodes", action="store_true", help="count Python instructions instead of measuring time")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    unit = "Python instructions" if args.opcodes else "median µs"
    print(f"{'policy':<12} {'state':<18}" + "".join(f"{f'{n}+{n}':>12}" for n in sizes) + f"   ({unit} per decision)")
    for name in args.policies.split(","):
        for state, table, make in STATES:
            if name not in policies_for(table):
                continue
            costs: list[float] = []
            for count in sizes:
                decide = decision(name, table, make, count)
                repeats = args.repeats if count <= 256 else args.repeats // 4
                costs.append(num_opcodes(decide) if args.opcodes else median_cost(decide, repeats))
            print(f"{name:<12} {state:<18}" + "".join(f"{cost:>12.0f}" for cost in costs))


if __name__ == "__main__":
    main()
