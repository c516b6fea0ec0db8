"""What holds for every policy on every kind of simulated device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neusim.bound import request_bound
from neusim.sim import Device, LlmWorkload, PipelineWorkload, Workload, default_device, named_policy, simulate
from neusim.sim.memory import KvMemory
from neusim.sim.sweep import Sweep, points, run_sweep
from neustream import POLICIES, LatencyTable, Outcome, Request, ScaleSlo
from neustream.latency import BatchLatency
from neustream.records import StepRecord
from neustream.testing import LLM_TABLE as LLM
from neustream.testing import PIPELINE_TABLE as LOOP
from neustream.testing import drive, fake_loop

LLM_NAMES = [name for name, entry in POLICIES.items() if entry.llm]
LOOP_NAMES = [name for name, entry in POLICIES.items() if entry.loop]
LOOP_DEVICES = [Device(), Device("process"), Device("process", handover=0.0, overhead=0.01, jitter=0.2)]
LLM_DEVICES = [Device(), Device(max_num_seqs=3, max_num_batched_tokens=500), Device(kv_blocks=60, jitter=0.1)]
CASES = [(name, LOOP, device) for name in LOOP_NAMES for device in LOOP_DEVICES] + [
    (name, LLM, device) for name in LLM_NAMES for device in LLM_DEVICES
]


def workload(table: LatencyTable, load: float, cv: float, scale: float, seed: int, count: int) -> Workload:
    if table is LLM:
        return LlmWorkload(3 * load, cv, ScaleSlo(scale, 1 + scale / 4), 6, count, seed)
    return PipelineWorkload(2 * load, cv, ScaleSlo(scale), (2, 7), count, seed)


@pytest.mark.parametrize(("name", "table", "device"), CASES)
@settings(max_examples=15, deadline=None)
@given(
    load=st.floats(0.3, 8.0), cv=st.floats(0.3, 4.0), scale=st.floats(1.0, 8.0), seed=st.integers(0, 9),
    count=st.integers(1, 25),
)  # fmt: skip
def test_every_request_ends_exactly_once_and_the_sum_is_right(name, table, device, load, cv, scale, seed, count):
    ended: list[Request] = []
    given_to_it = workload(table, load, cv, scale, seed, count)
    result = simulate(table, name, given_to_it, device, on_end=ended.append, keep_steps=True)
    assert sorted(int(request.request_id) for request in ended) == list(range(count))
    outcomes = Counter(request.outcome for request in ended)
    assert outcomes.keys() <= {Outcome.MET, Outcome.LATE, Outcome.REJECTED, Outcome.FAILED}
    assert bool(outcomes[Outcome.FAILED]) <= (device.kv_blocks is not None)
    assert result.good == outcomes[Outcome.MET] <= result.summary["requests"] == count
    for request in ended:
        if request.outcome in (Outcome.MET, Outcome.LATE):
            assert request.units == request.max_units
            assert not any(request.left)
    if not device.jitter:
        requests = list(given_to_it.requests(table))
        seats = device.max_num_seqs if table is LLM else None
        assert result.good <= request_bound(requests, table, devices=device.layout, max_batch=seats)
    for step in result.steps:
        assert step.seconds > 0
        assert len(set(step.request_ids)) == step.batch_size


@pytest.mark.parametrize(("name", "table", "device"), CASES)
def test_the_same_seed_gives_the_same_run_bit_for_bit(name, table, device):
    runs = [simulate(table, name, workload(table, 2.0, 1.0, 3.0, 1, 40), device, seed=7, keep_steps=True) for _ in "ab"]
    assert runs[0] == runs[1]
    other = simulate(table, name, workload(table, 2.0, 1.0, 3.0, 2, 40), device, seed=7, keep_steps=True)
    assert other.steps != runs[0].steps


def rounded(record: StepRecord) -> StepRecord:
    """The same to a nanosecond: a clock that is added to and an event's time differ in their last digits."""
    rest = tuple(round(seconds, 9) for seconds in record.rest_seconds)
    return replace(record, time=round(record.time, 9), seconds=round(record.seconds, 9), rest_seconds=rest)


@pytest.mark.parametrize(("name", "table"), [(name, LOOP) for name in LOOP_NAMES] + [(name, LLM) for name in LLM_NAMES])
@settings(max_examples=15, deadline=None)
@given(load=st.floats(0.3, 6.0), scale=st.floats(1.0, 6.0), seed=st.integers(0, 9))
def test_one_loop_without_memory_limits_is_the_cores_step_loop(name, table, load, scale, seed):
    """Same policy object, same requests: the simulator's records are those of the core's loop over a fake executor."""
    chosen = workload(table, load, 1.5, scale, seed, 20)
    device = Device(max_num_seqs=1 << 60, max_num_batched_tokens=1 << 60, can_split=False)
    result = simulate(table, name, chosen, device, slo_scale=scale, keep_steps=True)
    ended: list[Request] = []
    expected: list[StepRecord] = []
    loop, clock = fake_loop(named_policy(name, table, device, scale), table, ended.append, on_step=expected.append)
    drive(loop, clock, chosen.requests(table))
    assert [rounded(step) for step in result.steps] == [rounded(step) for step in expected]
    assert result.good == sum(request.outcome == Outcome.MET for request in ended)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(1, 30), st.booleans()), max_size=60),
    st.integers(4, 40),
)
def test_blocks_are_never_lost_nor_given_twice(moves, total):
    memory = KvMemory(total, 4, 0.1)
    requests = [next(LlmWorkload(1.0, 1.0, ScaleSlo(3.0), 9, 1, seed).requests(LLM)) for seed in range(8)]
    for i, request in enumerate(requests):
        request.request_id, request.arrival = str(i), float(i)
    for who, units, is_release in moves:
        request = requests[who]
        if is_release:
            memory.release(request)
        elif memory.blocks(units) - memory.held.get(request.request_id, 0) <= memory.free:
            memory.take(request, units)
        else:
            with pytest.raises(ValueError, match="free"):
                memory.take(request, units)
        memory.check_integrity()


def test_jitter_is_unbiased_and_comes_from_the_seed():
    device = Device(jitter=0.2)
    table = LatencyTable("t", "d", {"denoise": BatchLatency((1,), (1.0,))})
    chosen = PipelineWorkload(0.1, 1.0, ScaleSlo(9.0), (10, 11), 200)
    steps = simulate(table, "neustream", chosen, device, seed=1, keep_steps=True).steps
    seconds = np.array([step.seconds for step in steps])
    assert np.mean(seconds) == pytest.approx(1.0, rel=0.02)
    assert np.std(seconds) == pytest.approx(0.2, rel=0.1)
    assert simulate(table, "neustream", chosen, device, seed=2, keep_steps=True).steps != steps


class Counted:
    """Counts how many of its requests exist and have not ended."""

    num_requests = 3000

    def __init__(self) -> None:
        self.live = self.peak = 0

    def requests(self, table: LatencyTable) -> Iterator[Request]:
        for request in LlmWorkload(20.0, 1.0, ScaleSlo(3.0, 1.5), 4, self.num_requests).requests(table):
            self.live += 1
            self.peak = max(self.peak, self.live)
            yield request

    def ended(self, request: Request) -> None:
        self.live -= 1


def test_requests_are_made_as_they_arrive_and_dropped_as_they_end():
    counted = Counted()
    simulate(LLM, "neustream", counted, Device(), on_end=counted.ended)
    assert counted.live == 0
    assert counted.peak < 100


def test_worker_processes_change_nothing_but_the_time_it_takes():
    sweep = Sweep(
        LOOP, default_device(LOOP), ("neustream", "clockwork"),
        points({"rate": (1.0, 4.0), "cv": (1.0,), "slo_scale": (2.0, 4.0)}), 30, steps=(2, 7), has_bound=False,
    )  # fmt: skip
    rows = run_sweep(sweep, processes=1)
    assert rows == run_sweep(sweep, processes=2)
    assert [(row["rate"], row["slo_scale"], row["policy"]) for row in rows] == [
        (rate, scale, policy) for rate in (1.0, 4.0) for scale in (2.0, 4.0) for policy in ("neustream", "clockwork")
    ]
