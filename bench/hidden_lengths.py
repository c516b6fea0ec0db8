"""What policies are worth where nobody knows how long outputs become: the simulator with texts that end early.

    python bench/hidden_lengths.py [--tables DIR] [--device a6000] [--model opt-13b] [--max-tokens 300,1000,1500]

Output lengths are exponential with a mean of --mean tokens, cut off at the request's max_tokens, which is all that a
policy sees. The last column has the same outputs with max_tokens set to each one's true length. Prompts are prefilled
whole.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neusim.sim import default_device, simulate
from neusim.sim.workload import LlmWorkload
from neustream.cli.arguments import Parser, above, names, numbers, whole
from neustream.request import Request
from neustream.route import llm_route
from neustream.slo import ScaleSlo, Slo
from neustream.tables import LatencyTable, find_table
from neustream.workload import gamma_arrivals, prompt_lengths

POLICIES = ("fcfs", "neustream", "slack")
TABLES = Path(__file__).resolve().parent.parent / "neusim" / "tables"


@dataclass(frozen=True, slots=True)
class HiddenOutputs:
    """Prompts as `LlmWorkload` sends them (Poisson arrivals), whose outputs end where nobody expects it."""

    rate: float
    slo: Slo
    mean: float
    max_tokens: int
    is_known: bool = False
    """Whether each request asks for its true length."""
    num_requests: int = 400
    seed: int = 0

    def num_units(self, request: Request) -> int:
        """Tokens of the request's output."""
        drawn = np.random.default_rng((self.seed, int(request.request_id))).exponential(self.mean)
        return int(min(max(round(drawn), 1), self.max_tokens))

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        """The requests, in order of arrival."""
        known = LlmWorkload(self.rate, 1.0, self.slo, self.max_tokens, self.num_requests, self.seed)
        arrivals = gamma_arrivals(self.rate, 1.0, self.num_requests, self.seed)
        sizes = prompt_lengths(self.num_requests, self.seed)
        for request, arrival, size in zip(known.requests(table), arrivals.tolist(), sizes.tolist(), strict=True):
            if self.is_known:
                route = llm_route(self.num_units(request))
                deadlines = self.slo.bind(arrival, route, size, table)
                request = Request(request.request_id, arrival, deadlines, route, size)
            yield request


def cell(table: LatencyTable, policy: str, workload: HiddenOutputs) -> str:
    """Good requests and tokens on time per second of one run."""
    summary = simulate(table, policy, workload, default_device(table, can_split=False)).summary
    return f"{summary['good']:>5} {summary['token_goodput']:6.1f}"


def main() -> None:
    parser: argparse.ArgumentParser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder with <device>/<model>.json")
    parser.add_argument("--device", default="a6000")
    parser.add_argument("--model", default="opt-13b")
    parser.add_argument("--policy", type=names, default=POLICIES, metavar="P,…")
    parser.add_argument("--rate", type=numbers(above(0)), default=(3.0, 5.0, 8.0), metavar="R,…", help="requests/s")
    parser.add_argument("--mean", type=float, default=100.0, help="mean output, in tokens (default 100)")
    parser.add_argument("--max-tokens", type=numbers(above(0)), default=(300, 1000, 1500), metavar="N,…")
    parser.add_argument("--requests", type=whole(1), default=400, metavar="N")
    args = parser.parse_args()
    table = find_table(args.tables, args.device, args.model)
    slo = ScaleSlo(3.0, 1.5)
    columns = [*(f"max {int(most)}" for most in args.max_tokens), "known"]
    print(f"{'rate':>4} {'policy':<10}" + "".join(f"{column:>14}" for column in columns) + "   (good, tokens/s)")
    for rate in args.rate:
        for policy in args.policy:
            runs = [HiddenOutputs(rate, slo, args.mean, int(most), False, args.requests) for most in args.max_tokens]
            runs.append(HiddenOutputs(rate, slo, args.mean, int(max(args.max_tokens)), True, args.requests))
            print(f"{rate:>4g} {policy:<10}" + "".join(f"{cell(table, policy, run):>14}" for run in runs))


if __name__ == "__main__":
    main()
