"""Goodput: what was delivered on time, always beside what was not. docs/metrics.md defines every figure."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from neustream.records import StepRecord
from neustream.request import Outcome, Request

SAMPLES = 1 << 16
PERCENTILES = (50, 90, 99)
NUM_PARTS = 10
"""Parts of equally many requests, by the size of their input."""
ROUNDING = 1e-9
"""Seconds that differences of times on a clock may be off."""


class Reservoir:
    """Percentiles of a stream: exact up to 65,536 values, then of a uniform sample of that size (Vitter's R)."""

    def __init__(self, seed: int = 0) -> None:
        self.values: list[float] = []
        self.seen = 0
        self._random = random.Random(seed)

    def add(self, value: float) -> None:
        self.seen += 1
        if len(self.values) < SAMPLES:
            self.values.append(value)
        else:
            slot = self._random.randrange(self.seen)
            if slot < SAMPLES:
                self.values[slot] = value

    def percentiles(self) -> dict[str, float | None]:
        """`{"p50": …, "p90": …, "p99": …}` by the nearest-rank rule; None where nothing was added."""
        ordered = sorted(self.values)
        ranks = {f"p{p}": max(math.ceil(p / 100 * len(ordered)), 1) - 1 for p in PERCENTILES}
        return {name: ordered[rank] if ordered else None for name, rank in ranks.items()}


def keeps_means(request: Request) -> bool:
    """Whether a request counts as good by vLLM's `--goodput`: finished, TTFT and mean TPOT within its SLO.

    The mean may hide a pause, and time left over before the first unit counts for nothing. By `good` it is the other
    way round.
    """
    first, last, deadlines = request.first_unit_at, request.last_unit_at, request.deadlines
    if request.outcome not in (Outcome.MET, Outcome.LATE) or first is None or last is None:
        return False
    whole = replace(deadlines, last=math.inf)
    is_paced = whole.pace is None or last - first <= whole.at(request.units) - whole.first + ROUNDING
    return first <= deadlines.at(1) and is_paced and last <= deadlines.last


class _Verdicts:
    """How requests ended, and how late those were that finished."""

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.lateness = Reservoir()
        self.num_attained = 0
        """Those that are good by vLLM's definition, see `keeps_means`."""

    def count(self, request: Request, outcome: Outcome) -> None:
        self.outcomes[outcome] += 1
        self.num_attained += keeps_means(request)
        if outcome in (Outcome.MET, Outcome.LATE) and request.last_unit_at is not None:
            due = request.deadlines.at(request.units)
            if math.isfinite(due):  # an SLO may leave the last unit free
                self.lateness.add(request.last_unit_at - due)

    def summary(self) -> dict[str, Any]:
        """Shares of all requests, and the lateness of the finished ones in seconds."""
        requests = sum(self.outcomes.values())
        good, rejected = self.outcomes[Outcome.MET], self.outcomes[Outcome.REJECTED]
        return {
            "requests": requests,
            "good": good,
            "slo_attainment": good / requests if requests else 0.0,
            "mean_attainment": self.num_attained / requests if requests else 0.0,
            "reject_rate": rejected / requests if requests else 0.0,
            "lateness": self.lateness.percentiles(),
        }


def by_size(counts: Mapping[int, tuple[int, int]]) -> list[dict[str, Any]]:
    """Requests by tenths of their number, shortest input first: `least`, `most` (units of input), `requests`, `good`.

    `counts` maps a size to requests and good ones of it. Requests of one size stay together, so that a tenth may be
    larger than others, or have nobody, in which case it is left out.
    """
    total = sum(requests for requests, _ in counts.values())
    parts: dict[int, dict[str, Any]] = {}
    before = 0
    for size in sorted(counts):
        requests, good = counts[size]
        at = min(int(NUM_PARTS * (before + requests / 2) / total), NUM_PARTS - 1)
        part = parts.setdefault(at, {"least": size, "most": size, "requests": 0, "good": 0})
        part["most"] = size
        part["requests"] += requests
        part["good"] += good
        before += requests
    return list(parts.values())


class GoodputCounter:
    """Sums up requests as they end; its memory grows with the number of input sizes, not of requests. An observer.

    The denominator is requests injected: rejected, failed, aborted and late ones are misses.
    """

    def __init__(self) -> None:
        self.all = _Verdicts()
        self.classes: dict[str, _Verdicts] = {}
        """By SLO class; requests without one have the empty name."""
        self._by_size: dict[int, tuple[int, int]] = {}
        """Requests and good ones by their input's size."""
        self.units = 0
        self.units_on_time = 0
        self.first_arrival = math.inf
        self.last_end = -math.inf
        self.ttft = Reservoir()
        self.tpot = Reservoir()
        self.e2el = Reservoir()

    @property
    def outcomes(self) -> Counter[Outcome]:
        """How many requests ended in which way."""
        return self.all.outcomes

    def on_step(self, record: StepRecord) -> None:
        """Steps deliver nothing by themselves: requests are counted when they end."""

    def on_end(self, request: Request) -> None:
        """Count a request that has ended. Raises ValueError for one that has not."""
        if request.outcome is None or request.ended_at is None:
            raise ValueError(f"{request!r} has not ended")
        self.all.count(request, request.outcome)
        self.classes.setdefault(request.slo_class, _Verdicts()).count(request, request.outcome)
        requests, good = self._by_size.get(request.size, (0, 0))
        self._by_size[request.size] = requests + 1, good + (request.outcome is Outcome.MET)
        self.units += request.units
        self.units_on_time += request.units_on_time
        self.first_arrival = min(self.first_arrival, request.arrival)
        self.last_end = max(self.last_end, request.ended_at)
        if request.first_unit_at is None or request.last_unit_at is None:
            return
        self.ttft.add(request.first_unit_at - request.arrival)
        if request.units > 1:
            self.tpot.add((request.last_unit_at - request.first_unit_at) / (request.units - 1))
        if request.outcome in (Outcome.MET, Outcome.LATE):
            self.e2el.add(request.ended_at - request.arrival)

    def summary(self) -> dict[str, Any]:
        """The figures of docs/metrics.md. Rates are per second from the first arrival to the last end.

        `classes` is there where requests had SLO classes: of each its attainment, reject rate and lateness.
        `by_size` is there where inputs had at least ten sizes.
        """
        verdicts = self.all.summary()
        seconds = self.last_end - self.first_arrival if verdicts["requests"] else 0.0
        per_second = 1 / seconds if seconds > 0 else 0.0
        figures = {
            "requests": verdicts["requests"],
            "good": verdicts["good"],
            **{str(outcome): self.all.outcomes[outcome] for outcome in Outcome},
            "seconds": seconds,
            "request_goodput": verdicts["good"] * per_second,
            "token_goodput": self.units_on_time * per_second,
            "throughput": self.units * per_second,
            "slo_attainment": verdicts["slo_attainment"],
            "mean_attainment": verdicts["mean_attainment"],
            "reject_rate": verdicts["reject_rate"],
            "units": self.units,
            "units_on_time": self.units_on_time,
            "ttft": self.ttft.percentiles(),
            "tpot": self.tpot.percentiles(),
            "e2el": self.e2el.percentiles(),
            "lateness": verdicts["lateness"],
        }
        if any(self.classes):
            figures["classes"] = {name: counted.summary() for name, counted in sorted(self.classes.items())}
        if len(self._by_size) >= NUM_PARTS:
            figures["by_size"] = by_size(self._by_size)
        return figures
