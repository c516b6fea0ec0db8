"""The same requests through vLLM's scheduler and through the core's own step loop: the same steps at the same times."""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from vllm.sequence import SequenceGroup
from vllm_harness import BLOCK, Bench

from neustream import Limits, Request, ScaleSlo, Stage, make_policy
from neustream.policies.base import DECODE, PREFILL, shape_of
from neustream.tables import LatencyTable, load_table
from neustream.testing import VirtualClock, drive, fake_loop

Trace = list[tuple[float, str, list[str]]]
Ends = dict[str, tuple[str, int, int]]
MAX_SEQS, MAX_TOKENS = 8, 128


@dataclass(frozen=True)
class Job:
    name: str
    arrival: float
    length: int
    max_tokens: int
    slo: ScaleSlo
    on_miss: str


def jobs(seed: int) -> list[Job]:
    """60 requests, arriving faster than the table lets them be served."""
    rng = random.Random(seed)
    arrival = 0.0
    made = []
    for i in range(60):
        arrival += rng.expovariate(60.0)
        on_miss = "demote" if i % 7 == 0 else "reject"
        slo = ScaleSlo(rng.choice([2.0, 4.0, 8.0]), rng.choice([1.2, 2.0]))
        made.append(Job(f"r{i:02d}", arrival, rng.randint(5, 60), rng.randint(2, 20), slo, on_miss))
    return made


def through_core(policy: str, table: LatencyTable, work: list[Job]) -> tuple[Trace, Ends]:
    ended: list[Request] = []
    limits = Limits(max_resident=MAX_SEQS, max_work=MAX_TOKENS, free_blocks=9999, block_size=BLOCK)
    loop, clock = fake_loop(make_policy(policy, table), table, ended.append, limits)
    requests = []
    for job in work:
        route = (Stage(PREFILL, 1, emits=True), Stage(DECODE, job.max_tokens - 1, emits=True))
        deadlines = job.slo.bind(job.arrival, route, job.length, table)
        requests.append(
            Request(job.name, job.arrival, deadlines, route, job.length, on_miss=job.on_miss)  # type: ignore[arg-type]
        )
    return drive(loop, clock, requests), ends(ended)


def through_vllm(policy: str, table_path: str, work: list[Job], monkeypatch: pytest.MonkeyPatch) -> tuple[Trace, Ends]:
    clock = VirtualClock()
    table = load_table(table_path)
    for module in ("vllm.core.scheduler", "vllm.core.step_policy"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(time=clock, perf_counter=clock))
    config = {"policy": policy, "table": table_path}
    bench = Bench(
        factory="vllm_patch.factory:build",
        config=config,
        max_seqs=MAX_SEQS,
        max_tokens=MAX_TOKENS,
        blocks=10000,
    )
    bench.clock = clock
    kind = PREFILL

    def execute(batch: list[SequenceGroup]) -> None:
        nonlocal kind
        if batch:
            kind = PREFILL if batch[0].is_prefill() else DECODE
            clock.now += table[kind].predict(shape_of(group.policy_state for group in batch))

    bench.execute = execute
    ended: list[Request] = []
    assert bench.scheduler.step_policy is not None
    bench.scheduler.step_policy.policy.on_end = ended.append
    trace: Trace = []
    left = list(work)
    while left or bench.scheduler.has_unfinished_seqs():
        while left and left[0].arrival <= clock.now:
            job = left.pop(0)
            slo = {"pslo": job.slo.first, "dslo": job.slo.rest, "on_miss": job.on_miss}
            bench.add(job.name, job.length, job.max_tokens, slo=slo, ago=clock.now - job.arrival)
        start = clock.now
        _, ids = bench.step()
        if ids:
            trace.append((round(start, 9), kind, ids))
        elif left and not bench.scheduler.has_unfinished_seqs():
            clock.now = max(clock.now, left[0].arrival)
    assert bench.num_errors == 0
    return trace, ends(ended)


def ends(requests: list[Request]) -> Ends:
    return {r.request_id: (str(r.outcome), r.units, r.units_on_time) for r in requests}


@pytest.mark.parametrize("policy", ["fcfs", "neustream"])
@pytest.mark.parametrize("seed", range(3))
def test_vllm_and_the_core_take_the_same_steps(
    policy: str, seed: int, table_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = jobs(seed)
    core, core_ends = through_core(policy, load_table(table_path), work)
    vllm, vllm_ends = through_vllm(policy, table_path, work, monkeypatch)
    assert [(start, kind, sorted(ids)) for start, kind, ids in vllm] == [
        (start, kind, sorted(ids)) for start, kind, ids in core
    ]
    assert vllm_ends == core_ends
    assert len(vllm_ends) == len(work)
    outcomes = {outcome for outcome, _, _ in vllm_ends.values()}
    assert ("rejected" in outcomes) == (policy == "neustream")
