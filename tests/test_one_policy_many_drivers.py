"""The same requests through the fake executor, the simulator and vLLM's scheduler give the same plans."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import pytest

from neusim.sim import Device, StepTrace, simulate
from neustream import POLICIES, LatencyTable, Limits, Request, Shape, Streams, make_policy, parse_slo, save_table
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.loop import StepLoop
from neustream.testing import FakeExecutor, VirtualClock, drive
from neustream.workload import gamma_arrivals, llm_route, pipeline_route, prompt_lengths, step_counts

Trace = list[tuple[float, str, list[str]]]
SEATS, TOKENS = 32, 256
LLM = LatencyTable(
    "opt-hand",
    "paper",
    {"prefill": TokensLatency((0.02, 0.001, 0.0)), "decode": ContextLatency((0.03, 1e-5), (1, 16), (0.03, 0.05))},
)
LOOP = LatencyTable(
    "dit-hand",
    "paper",
    {
        "denoise": BatchLatency((1, 2, 4, 8), (0.1, 0.12, 0.16, 0.24)),
        "vae": BatchLatency((1, 2), (0.05, 0.1)),
    },
)
SLO = {"pslo": 4.0, "dslo": 1.5}


class Fixed:
    """A workload whose requests are these."""

    def __init__(self, make: Any) -> None:
        self.make = make
        self.num_requests = len(make())

    def requests(self, table: LatencyTable) -> Any:
        return iter(self.make())


def prompts() -> list[Request]:
    """Forty prompts at about twice what the table can serve on time."""
    arrivals, lengths, route = gamma_arrivals(8.0, 1.0, 40, 0), prompt_lengths(40, 0), llm_route(12)
    sizes = [min(int(length), 200) for length in lengths]
    slo = parse_slo(SLO)
    return [
        Request(str(i), float(a), slo.bind(float(a), route, n, LLM), route, n)
        for i, (a, n) in enumerate(zip(arrivals, sizes, strict=True))
    ]


def images() -> list[Request]:
    arrivals, counts = gamma_arrivals(3.0, 1.0, 30, 0), step_counts(3, 9, 30)
    requests = []
    for i, (arrival, count) in enumerate(zip(arrivals, counts, strict=True)):
        route = pipeline_route(LOOP.modules, int(count))
        deadlines = parse_slo({"slo_scale": 2.5}).bind(float(arrival), route, 1, LOOP)
        requests.append(Request(str(i), float(arrival), deadlines, route))
    return requests


def through_fake_executor(name: str, table: LatencyTable, requests: list[Request], limits: Limits) -> Trace:
    clock = VirtualClock()
    executor = FakeExecutor(table, clock, limits)
    loop = StepLoop(make_policy(name, table), Streams(table.modules), executor, clock, lambda request: None)
    return drive(loop, clock, requests)


def through_simulator(name: str, table: LatencyTable, make: Any) -> Trace:
    device = Device(max_num_seqs=SEATS, max_num_batched_tokens=TOKENS)
    steps: tuple[StepTrace, ...] = simulate(table, name, Fixed(make), device, keep_steps=True).steps
    return [(round(step.start, 9), step.module, list(step.batch)) for step in steps]


def through_vllm(name: str, monkeypatch: pytest.MonkeyPatch, table_file: Path) -> Trace:
    """vLLM's own scheduler around the adapter, with every clock replaced and a step's seconds from the table."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "vllm_patch"))
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    harness = importlib.import_module("vllm_harness")
    clock = VirtualClock()
    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr(time, "perf_counter", clock)
    config = {"policy": name, "table": str(table_file), "slo": SLO}
    bench = harness.Bench(
        factory="vllm_patch.factory:build", config=config, blocks=4000, max_seqs=SEATS, max_tokens=TOKENS
    )
    schedule = bench.scheduler.schedule

    def timed_schedule() -> Any:
        metadata, outputs = schedule()
        lengths = [entry.seq_group.seqs[0].get_len() for entry in outputs.scheduled_seq_groups]
        if outputs.num_prefill_groups:
            shape = Shape(len(lengths), sum(lengths), sum(n * n for n in lengths), sum(lengths))
            clock.now += LLM["prefill"].predict(shape)
        elif lengths:
            clock.now += LLM["decode"].predict(Shape(len(lengths), 0, 0, sum(lengths)))
        return metadata, outputs

    bench.scheduler.schedule = timed_schedule
    trace: Trace = []
    pending = prompts()
    while pending or bench.scheduler.has_unfinished_seqs():
        while pending and pending[0].arrival <= clock.now:
            request = pending.pop(0)
            bench.add(request.request_id, request.size, 12, ago=clock.now - request.arrival)
        start = clock.now
        if bench.scheduler.has_unfinished_seqs():
            kind, ids = bench.step()
            if ids:
                trace.append((round(start, 9), kind, ids))
                continue
        if not bench.scheduler.has_unfinished_seqs() and pending:
            clock.now = max(clock.now, pending[0].arrival)
    assert bench.num_errors == 0
    return trace


def same(trace: Trace) -> Trace:
    """Batches as sets: drivers may list the members of a batch in another order."""
    return [(round(start, 6), module, sorted(ids, key=int)) for start, module, ids in trace]


VLLM_POLICIES = [name for name, entry in POLICIES.items() if entry.llm and name != "chunked"]


@pytest.mark.parametrize("name", VLLM_POLICIES)
def test_prompts_are_planned_alike_by_fake_executor_simulator_and_vllm(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limits = Limits(max_resident=SEATS, max_work=TOKENS)
    expected = same(through_fake_executor(name, LLM, prompts(), limits))
    assert {module for _, module, _ in expected} == {"prefill", "decode"}
    assert same(through_simulator(name, LLM, prompts)) == expected
    save_table(LLM, tmp_path / "table.json")
    assert same(through_vllm(name, monkeypatch, tmp_path / "table.json")) == expected


@pytest.mark.parametrize("name", [name for name, entry in POLICIES.items() if entry.loop])
def test_images_are_planned_alike_by_fake_executor_and_simulator(name: str) -> None:
    expected = same(through_fake_executor(name, LOOP, images(), Limits()))
    assert {module for _, module, _ in expected} == {"denoise", "vae"}
    assert same(through_simulator(name, LOOP, images)) == expected
