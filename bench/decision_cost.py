"""What one decision costs: the median time of `plan` with n running and n waiting requests, per policy.

    python bench/decision_cost.py [--policies neustream,fcfs] [--sizes 64,256]

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

from neustream import POLICIES, LatencyTable, Limits, Request, ScaleSlo, Stage, Streams, make_policy
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
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


def llm_streams(count: int) -> tuple[Streams, float]:
    """`count` waiting and `count` running requests, all of which can still make it."""
    streams = Streams(LLM.modules)
    slo = ScaleSlo(50.0, 4.0)
    for i in range(2 * count):
        size = 10 + 37 * i % 390
        route = llm_route(300)
        request = Request(f"r{i}", 0.0, slo.bind(0.0, route, size, LLM), route, size)
        if i < count:
            request.advance(0.01)
            for _ in range(i % 50):
                request.advance(0.02)
        streams.add(request)
    return streams, 0.05


def loop_streams(count: int, scale: float = 30.0) -> tuple[Streams, float]:
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


def overloaded_streams(count: int) -> tuple[Streams, float]:
    """The same under SLOs that by far not all of them can meet: whoever chooses among them has most to do."""
    return loop_streams(count, 3.0)


def median_cost(
    policy_name: str, table: LatencyTable, make: Callable[[int], tuple[Streams, float]], count: int, repeats: int
) -> float:
    """Median seconds of one decision."""
    streams, now = make(count)
    policy = make_policy(policy_name, table)
    limits = Limits(max_resident=4 * count, max_work=4096, free_blocks=100_000, block_size=16)
    costs = []
    for i in range(repeats):
        start = time.perf_counter()
        policy.plan(now + i * 1e-6, streams, limits)
        costs.append(time.perf_counter() - start)
    return statistics.median(costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--policies", default=",".join(POLICIES), help="comma-separated names")
    parser.add_argument("--sizes", default="16,64,256,1024", help="comma-separated numbers of running = waiting")
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    print(f"{'policy':<12} {'kind':<10}" + "".join(f"{f'{n}+{n}':>12}" for n in sizes) + "   (median µs per decision)")
    for name in args.policies.split(","):
        entry = POLICIES[name]
        kinds = (
            ("llm", LLM, entry.llm, llm_streams),
            ("loop", LOOP, entry.loop, loop_streams),
            ("overloaded", LOOP, entry.loop, overloaded_streams),
        )
        for kind, table, build, make in kinds:
            if build is None:
                continue
            costs = [median_cost(name, table, make, n, args.repeats if n <= 256 else args.repeats // 4) for n in sizes]
            print(f"{name:<12} {kind:<10}" + "".join(f"{cost * 1e6:>12.0f}" for cost in costs))


if __name__ == "__main__":
    main()
