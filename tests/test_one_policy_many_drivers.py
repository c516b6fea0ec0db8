"""The same requests through the fake executor, the simulator and vLLM's scheduler: the same steps at the same times."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neusim.sim import Device, SimulatedDriver, SimulatedRequest, named_policy, simulate
from neustream import POLICIES, LatencyTable, Limits, Request, ScaleSlo, make_policy, save_table
from neustream.cost import shape_of
from neustream.driver import Ask, Driver
from neustream.request import OnMiss
from neustream.route import DECODE, PREFILL, llm_route, pipeline_route
from neustream.testing import LLM_TABLE as LLM
from neustream.testing import PIPELINE_TABLE as LOOP
from neustream.testing import VirtualClock, drive, fake_loop
from neustream.workload import gamma_arrivals, step_counts

Trace = list[tuple[float, str, list[str]]]
Ends = dict[str, tuple[str, int, int]]
MAX_SEQS, MAX_TOKENS, BLOCK = 8, 128, 4


SHARED = [name for name, entry in POLICIES.items() if entry.llm and not entry.splits]
"""The policies that all three drivers run: vLLM 0.5.4 has no steps with pieces of prompts."""


@dataclass(frozen=True)
class Job:
    """One prompt of the scenario."""

    name: str
    arrival: float
    length: int
    max_tokens: int
    slo: ScaleSlo
    on_miss: OnMiss

    def request(self) -> Request:
        route = llm_route(self.max_tokens)
        deadlines = self.slo.bind(self.arrival, route, self.length, LLM)
        return Request(self.name, self.arrival, deadlines, route, self.length, on_miss=self.on_miss)

    def ask(self) -> Ask:
        payload = SimulatedRequest(llm_route(self.max_tokens), self.length)
        slo = {"pslo": self.slo.first, "dslo": self.slo.rest}
        return Ask(self.name, self.arrival, payload, slo, self.on_miss)


def jobs(seed: int, lull: float = 0.0) -> list[Job]:
    """60 prompts, arriving faster than the table lets them be served; after each six of them nobody for `lull` s."""
    rng = random.Random(seed)
    arrival = 0.0
    made = []
    for i in range(60):
        arrival += rng.expovariate(60.0) + (lull if i % 6 == 0 else 0.0)
        on_miss: OnMiss = "demote" if i % 7 == 0 else "reject"
        slo = ScaleSlo(rng.choice([2.0, 4.0, 8.0]), rng.choice([1.2, 2.0]))
        made.append(Job(f"r{i:02d}", arrival, rng.randint(5, 60), rng.randint(2, 20), slo, on_miss))
    return made


def images(seed: int) -> list[Request]:
    arrivals, counts = gamma_arrivals(3.0, 1.0, 30, seed), step_counts(3, 9, 30, seed)
    requests = []
    for i, (arrival, count) in enumerate(zip(arrivals, counts, strict=True)):
        route = pipeline_route(LOOP.modules, int(count))
        deadlines = ScaleSlo(2.5).bind(float(arrival), route, 1, LOOP)
        requests.append(Request(f"r{i:02d}", float(arrival), deadlines, route))
    return requests


@dataclass(frozen=True)
class Fixed:
    """A workload of these requests."""

    made: list[Request]

    @property
    def num_requests(self) -> int:
        return len(self.made)

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        return iter(self.made)


def through_core(policy: str, table: LatencyTable, requests: list[Request]) -> tuple[Trace, Ends]:
    ended: list[Request] = []
    limits = Limits(max_resident=MAX_SEQS, max_work=MAX_TOKENS, free_blocks=9999, block_size=BLOCK)
    loop, clock = fake_loop(make_policy(policy, table), table, ended.append, limits)
    return ordered(drive(loop, clock, requests)), ends(ended)


def like_vllm(blocks: int | None) -> Device:
    """A simulated device with the limits and the abilities of vLLM 0.5.4."""
    return Device(
        max_num_seqs=MAX_SEQS,
        max_num_batched_tokens=MAX_TOKENS,
        kv_blocks=blocks,
        block_size=BLOCK if blocks else 16,
        can_split=False,
    )


def through_simulator(
    policy: str, table: LatencyTable, requests: list[Request], blocks: int | None = None
) -> tuple[Trace, Ends]:
    device = like_vllm(blocks)
    ended: list[Request] = []
    result = simulate(table, policy, Fixed(requests), device, keep_steps=True, on_end=ended.append)
    return ordered([(step.time, step.kind, list(step.request_ids)) for step in result.steps]), ends(ended)


def through_contract(
    policy: str, table: LatencyTable, asks: list[Ask], blocks: int | None = None
) -> tuple[Trace, Ends]:
    """The simulated device as any client drives an engine: asks go in when they arrive, and not before."""
    device = like_vllm(blocks)
    driver = SimulatedDriver(table, device, lambda: named_policy(policy, table, device))
    return serve(driver, asks, lambda: driver.now, driver.wait)


def serve(
    driver: Driver, asks: list[Ask], clock: Callable[[], float], wait: Callable[[float], None]
) -> tuple[Trace, Ends]:
    """Feed a driver by its contract alone until all has ended."""
    trace: Trace = []
    ended: list[Request] = []
    while asks or driver.num_unfinished:
        while asks and asks[0].arrival <= clock():
            driver.submit(asks.pop(0))
        record = driver.step()
        ended += driver.take_ended()
        if record is not None:
            trace.append((record.time, record.kind, list(record.request_ids)))
        elif asks or driver.num_unfinished:
            moments = [moment for moment in (driver.wake, asks[0].arrival if asks else None) if moment is not None]
            assert moments, f"idle for ever with {driver.num_unfinished}"
            wait(min(moments))
    return ordered(trace), ends(ended)


def through_vllm(
    policy: str, work: list[Job], monkeypatch: pytest.MonkeyPatch, folder: Path, blocks: int = 10000
) -> tuple[Trace, Ends, int]:
    """vLLM's own scheduler around the adapter; its clocks are replaced, and a step takes the table's seconds."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "vllm_patch"))
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    harness = importlib.import_module("vllm_harness")
    assert harness.BLOCK == BLOCK
    clock = VirtualClock()
    table_path = folder / "table.json"
    save_table(LLM, table_path)
    for module in ("vllm.core.scheduler", "vllm.core.step_policy"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(time=clock, perf_counter=clock))
    config = {"policy": policy, "table": str(table_path)}
    bench = harness.Bench(
        factory="vllm_patch.factory:build",
        config=config,
        max_seqs=MAX_SEQS,
        max_tokens=MAX_TOKENS,
        blocks=blocks,
    )
    bench.clock = clock
    kind = PREFILL

    def execute(batch: list[Any]) -> None:
        nonlocal kind
        if batch:
            kind = PREFILL if batch[0].is_prefill() else DECODE
            clock.now += LLM[kind].predict(shape_of(group.policy_state for group in batch))

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
    return ordered(trace), ends(ended), bench.scheduler.num_cumulative_preemption


def ordered(trace: Trace) -> Trace:
    """Drivers may list the members of a batch in any order."""
    return [(round(start, 9), module, sorted(ids)) for start, module, ids in trace]


def ends(requests: list[Request]) -> Ends:
    return {r.request_id: (str(r.outcome), r.units, r.units_on_time) for r in requests}


@pytest.mark.parametrize("policy", SHARED)
@pytest.mark.parametrize("seed", range(3))
def test_prompts_are_planned_alike_by_fake_executor_simulator_and_vllm(
    policy: str, seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = jobs(seed)
    expected, expected_ends = through_core(policy, LLM, [job.request() for job in work])
    assert {module for _, module, _ in expected} == {PREFILL, DECODE}
    assert len(expected_ends) == len(work)
    assert ("rejected" in {outcome for outcome, _, _ in expected_ends.values()}) == (policy != "fcfs")
    assert through_simulator(policy, LLM, [job.request() for job in work]) == (expected, expected_ends)
    assert through_contract(policy, LLM, [job.ask() for job in work]) == (expected, expected_ends)
    assert through_vllm(policy, work, monkeypatch, tmp_path) == (expected, expected_ends, 0)


@pytest.mark.parametrize(("blocks", "lull"), [(30, 0.0), (60, 0.0), (30, 0.3)])
@pytest.mark.parametrize("policy", SHARED)
def test_prompts_are_planned_alike_where_memory_is_short(
    policy: str, blocks: int, lull: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In lulls demoted requests run, and the next burst takes their memory."""
    all_preempted = 0
    for seed in range(3):
        work = jobs(seed, lull)
        expected, expected_ends = through_simulator(policy, LLM, [job.request() for job in work], blocks)
        assert through_contract(policy, LLM, [job.ask() for job in work], blocks) == (expected, expected_ends)
        trace, found, num_preempted = through_vllm(policy, work, monkeypatch, tmp_path, blocks)
        assert trace == expected, seed
        assert found == expected_ends
        assert len(found) == len(work)
        demoted = {job.name for job in work if job.on_miss == "demote"}
        assert all(outcome != "rejected" for name, (outcome, _, _) in found.items() if name in demoted)
        all_preempted += num_preempted
    assert all_preempted > 0


@pytest.mark.parametrize("policy", [name for name, entry in POLICIES.items() if entry.loop])
@pytest.mark.parametrize("seed", range(3))
def test_images_are_planned_alike_by_fake_executor_and_simulator(policy: str, seed: int) -> None:
    expected, expected_ends = through_core(policy, LOOP, images(seed))
    assert {module for _, module, _ in expected} == set(LOOP.modules)
    assert len(expected_ends) == 30
    assert through_simulator(policy, LOOP, images(seed)) == (expected, expected_ends)
    asks = [Ask(r.request_id, r.arrival, SimulatedRequest(r.route), {"slo_scale": 2.5}) for r in images(seed)]
    assert through_contract(policy, LOOP, asks) == (expected, expected_ends)
