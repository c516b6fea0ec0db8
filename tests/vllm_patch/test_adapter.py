"""The adapter: sequence groups and core requests say the same, and a core policy runs vLLM's steps."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import SchedulerConfig
from vllm_harness import BLOCK, Bench

from neustream.plan import Limits, StepPlan
from neustream.request import Request
from neustream.route import DECODE, PREFILL
from neustream.streams import Streams
from vllm_patch.adapter import Adapter, told_tokens
from vllm_patch.patchset import PatchSet
from vllm_patch.target import Target

BUILD = "vllm_patch.factory:build"
LAX = {"ttft_ms": 1e6, "tpot_ms": 1e6}


def bench_with(config: dict[str, Any], **options: Any) -> Bench:
    return Bench(factory=BUILD, config=config, **options)


def adapter_of(bench: Bench) -> Adapter:
    assert bench.scheduler.step_policy is not None
    policy = bench.scheduler.step_policy.policy
    assert isinstance(policy, Adapter)
    return policy


def workload(bench: Bench, seed: int) -> list[tuple[str, list[str]]]:
    rng = random.Random(seed)
    trace = []
    for i in range(40):
        bench.add(f"r{i}", rng.randint(1, 24), rng.randint(1, 12), slo=LAX)
        trace += [bench.step() for _ in range(rng.randint(0, 2))]
    return trace + bench.run()


def check_mirror(bench: Bench) -> None:
    """The streams hold what vLLM's queues held when the policy was last asked."""
    adapter = adapter_of(bench)
    adapter.streams.check_integrity()
    for request in adapter.streams:
        group = request.group  # type: ignore[attr-defined]
        assert group.policy_state is request
        assert request.units == len(group.metrics.token_times) == group.seqs[0].get_output_len()
        assert request.context == group.seqs[0].get_len()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{"blocks": 200}, {"blocks": 24, "max_seqs": 6}, {"blocks": 24, "v2": True}])
def test_fcfs_of_the_core_gives_vllms_own_trace(seed: int, options: dict[str, Any]) -> None:
    plain, hooked = Bench(**options), bench_with({"policy": "fcfs"}, **options)
    assert workload(hooked, seed) == workload(plain, seed)
    assert hooked.num_errors == 0
    assert len(adapter_of(hooked).streams) == 0


def watch(bench: Bench) -> None:
    """Hold the adapter to what it mirrors, at every decision."""
    adapter = adapter_of(bench)
    decide = adapter.decide

    def checked(now: float, waiting: Any, running: Any, swapped: Any, capacity: Any) -> Any:
        decision = decide(now, waiting, running, swapped, capacity)
        check_mirror(bench)
        possible = [g.request_id for g in waiting if g.seqs[0].get_prompt_len() <= bench.blocks * BLOCK]
        assert [r.request_id for r in adapter.streams[PREFILL]] == possible
        assert {r.request_id for r in adapter.streams[DECODE]} == {g.request_id for g in running}
        live = {group.request_id: group for group in (*waiting, *running, *swapped)}
        assert adapter.ledger.open == {name: group.policy_state for name, group in live.items()}
        residents = {name for name, request in adapter.ledger.open.items() if request.is_resident}
        assert residents == {group.request_id for group in running}
        return decision

    adapter.decide = checked  # type: ignore[method-assign]


@pytest.mark.parametrize("policy", ["fcfs", "neustream", "slack"])
def test_streams_mirror_the_queues_through_preemption(policy: str, table_path: str) -> None:
    bench = bench_with({"policy": policy, "table": table_path}, blocks=20)
    watch(bench)
    rng = random.Random(0)
    for i in range(30):
        bench.add(f"r{i}", rng.randint(1, 24), rng.randint(1, 12), slo=LAX)
        bench.step()
    bench.run()
    assert bench.num_errors == 0
    assert bench.scheduler.num_cumulative_preemption > 0 or policy == "slack"  # slack foresees what fits
    assert set(bench.reasons().values()) == {"length"}
    assert bench.free_blocks() == 20


SLOS: list[Any] = [None, LAX, {"ttft_ms": 1}, {"e2el_ms": 1e6}, {"ttft_ms": 1e6, "e2el_ms": 5}, {"pslo": 9, "dslo": 9}]


@pytest.mark.parametrize("policy", ["fcfs", "neustream", "slack"])
@pytest.mark.parametrize("seed", range(4))
def test_nobody_is_lost_whatever_comes(policy: str, seed: int, table_path: str) -> None:
    """Every kind of SLO, both answers to a miss, wide and long requests, early ends, aborts, in a small memory."""
    bench = bench_with({"policy": policy, "table": table_path}, blocks=16, cpu_blocks=40, max_seqs=12)
    watch(bench)
    ended: list[Request] = []
    adapter_of(bench).on_end = ended.append
    rng = random.Random(seed)
    aborted = set()
    for i in range(50):
        slo = rng.choice(SLOS)
        if slo is not None:
            slo = {**slo, "on_miss": rng.choice(["reject", "demote"])}
        sampling: dict[str, Any] = {"n": 2, "best_of": 2} if i % 9 == 0 else {}
        if i % 4 == 0:
            sampling["stop_token_ids"] = [10 + rng.randint(0, 12)]
        bench.add(f"r{i}", rng.choice([1, 7, 20, 70]), rng.randint(1, 14), slo=slo, **sampling)
        if i % 10 == 9:
            name = rng.choice(list(adapter_of(bench).ledger.open))
            bench.scheduler.abort_seq_group(name)
            aborted.add(name)
        for _ in range(rng.randint(0, 3)):
            bench.step()
    bench.run()
    assert bench.num_errors == 0
    assert sorted(request.request_id for request in ended) == sorted(f"r{i}" for i in range(50))
    assert {r.request_id for r in ended if r.outcome == "aborted"} == aborted
    assert set(bench.outputs) == {f"r{i}" for i in range(50)} - aborted
    rejected = {r.request_id for r in ended if r.outcome == "rejected"}
    assert rejected == {name for name, reason in bench.reasons().items() if reason == "timeout"}
    assert (bench.free_blocks(), len(adapter_of(bench).streams), adapter_of(bench).streams.num_demoted) == (16, 0, 0)
    assert bench.scheduler.block_manager.get_num_free_cpu_blocks() == 40


def test_one_request_per_group_from_arrival_to_end() -> None:
    bench = bench_with({"policy": "fcfs"})
    bench.add("a", 5, 3)
    (group,) = bench.scheduler.waiting
    request = group.policy_state
    ended: list[Request] = []
    adapter_of(bench).on_end = ended.append
    while bench.scheduler.has_unfinished_seqs():
        assert group.policy_state is request
        bench.step()
    assert ended == [request]
    assert group.policy_state is None
    assert (request.units, request.units_on_time, request.outcome) == (3, 3, "met")


def test_deadlines_of_an_absolute_slo_come_out_with_the_tokens() -> None:
    bench = bench_with({"policy": "fcfs"})
    bench.add("a", 5, 3, slo={"ttft_ms": 500, "tpot_ms": 20})
    bench.add("b", 5, 3)
    bench.run()
    metrics = bench.outputs["a"].metrics
    assert metrics.deadlines == pytest.approx([metrics.arrival_time + due for due in (0.5, 0.52, 0.54)])
    assert len(metrics.token_times) == 3
    assert metrics.token_times == sorted(metrics.token_times)
    assert bench.outputs["b"].metrics.deadlines is None


def test_deadlines_of_a_scale_come_from_the_table(table_path: str) -> None:
    config = {"policy": "fcfs", "table": table_path, "slo": {"pslo": 3, "dslo": 2}}
    bench = bench_with(config)
    bench.add("a", 100, 3)
    bench.add("b", 100, 3, slo={"pslo": 5, "dslo": 1})
    bench.run()
    for name, due in (("a", (0.06, 0.08, 0.10)), ("b", (0.10, 0.11, 0.12))):
        metrics = bench.outputs[name].metrics
        assert metrics.deadlines == pytest.approx([metrics.arrival_time + seconds for seconds in due])


def test_neustream_rejects_who_cannot_make_it_and_serves_the_rest(table_path: str) -> None:
    bench = bench_with({"policy": "neustream", "table": table_path})
    ended: list[Request] = []
    adapter_of(bench).on_end = ended.append
    slo = {"ttft_ms": 1000, "tpot_ms": 1000}
    bench.add("late", 20, 3, slo=slo, ago=100.0)
    bench.add("late but demoted", 20, 3, slo={**slo, "on_miss": "demote"}, ago=100.0)
    bench.add("fresh", 20, 3, slo=slo)
    bench.add("free", 20, 3, ago=1000.0)
    bench.run()
    assert bench.num_errors == 0
    assert bench.reasons() == {"fresh": "length", "free": "length", "late": "timeout", "late but demoted": "length"}
    late = bench.outputs["late"]
    assert "alone takes" in str(late.outputs[0].stop_reason)
    assert late.metrics.deadlines == pytest.approx([late.metrics.arrival_time + 1.0])
    assert {r.request_id: str(r.outcome) for r in ended} == {
        "late": "rejected",
        "late but demoted": "late",
        "fresh": "met",
        "free": "met",
    }
    assert bench.free_blocks() == 100


def test_a_preempted_request_is_not_rejected_for_its_first_token_again(table_path: str) -> None:
    bench = bench_with({"policy": "neustream", "table": table_path}, blocks=8)
    slo = {"ttft_ms": 1000, "tpot_ms": 1000}
    bench.add("a", 12, 14, slo=slo)
    bench.add("b", 12, 14, slo=slo)
    while not bench.scheduler.num_cumulative_preemption:
        bench.step()
    (group,) = bench.scheduler.waiting
    units = group.policy_state.units
    assert units > 0
    for request in adapter_of(bench).streams:
        request.next_deadline -= 1000.0
    bench.run()
    assert bench.reasons() == {"a": "length", "b": "length"}
    assert [len(output.outputs[0].token_ids) for output in bench.outputs.values()] == [14, 14]
    assert [len(output.metrics.token_times) for output in bench.outputs.values()] == [14, 14]


def test_swapped_groups_leave_the_streams_and_come_back() -> None:
    bench = bench_with({"policy": "fcfs"}, blocks=9, cpu_blocks=60)
    seen = set()
    for i in range(4):
        bench.add(f"r{i}", 7, 12, n=3)
    adapter = adapter_of(bench)
    while bench.scheduler.has_unfinished_seqs():
        bench.step()
        adapter.streams.check_integrity()
        for group in bench.scheduler.swapped:
            seen.add(group.request_id)
    assert seen
    assert bench.num_errors == 0
    assert bench.reasons() == {f"r{i}": "length" for i in range(4)}
    assert len(adapter.streams) == 0


@pytest.mark.parametrize("policy", ["fcfs", "neustream"])
def test_a_prompt_that_can_never_fit_blocks_nobody(policy: str, table_path: str) -> None:
    bench = bench_with({"policy": policy, "table": table_path}, blocks=10)
    bench.add("long", 60, slo=LAX)
    bench.add("a", 5, 2, slo=LAX)
    bench.add("b", 5, 2, slo=LAX)
    assert bench.run() == [("prefill", ["a", "b"]), ("decode", ["a", "b"])]
    assert bench.outputs["long"].finished
    assert bench.outputs["long"].outputs[0].token_ids == ()
    assert bench.num_errors == 0


def test_a_swapped_group_holds_no_seat_and_no_memory_of_the_device() -> None:
    bench = bench_with({"policy": "fcfs"}, blocks=9, cpu_blocks=60, max_seqs=12)
    adapter = adapter_of(bench)
    plan = adapter.policy.plan
    seen = []

    def watched(now: float, streams: Any, limits: Limits) -> Any:
        states = {request.request_id: request.is_resident for request in adapter.ledger.open.values()}
        assert states == {name: name in bench.names("running") for name in states}
        running = sum(request.width for request in streams[DECODE])
        seen.append((len(bench.scheduler.swapped), limits.max_resident - running))
        return plan(now, streams, limits)

    adapter.policy.plan = watched  # type: ignore[method-assign]
    for i in range(4):
        bench.add(f"r{i}", 7, 12, n=3)
    bench.run()
    assert bench.num_errors == 0
    swapped = [seats for num_swapped, seats in seen if num_swapped]
    assert swapped == [0] * len(swapped) != []  # nothing can be prefilled: no seat is free
    assert seen[0] == (0, 12)


def test_visits_left_are_those_that_vllm_makes_also_at_the_models_length() -> None:
    """vLLM ends a text with the token that makes it longer than the model's length."""
    bench = bench_with({"policy": "fcfs"}, max_tokens=20, max_seqs=8)
    adapter = adapter_of(bench)
    ended: list[Request] = []
    adapter.on_end = ended.append
    decide = adapter.decide
    left = []

    def watched(*arguments: Any) -> Any:
        decision = decide(*arguments)
        left.extend(min(request.left) for request in adapter.streams)
        return decision

    adapter.decide = watched  # type: ignore[method-assign]
    bench.add("capped", 12, 100)
    bench.add("whole", 12, 4)
    bench.add("endless", 12, None)  # type: ignore[arg-type]
    bench.run()
    assert {r.request_id: (r.units, r.max_units, r.left) for r in ended} == {
        "capped": (9, 9, [0, 0]),
        "whole": (4, 4, [0, 0]),
        "endless": (9, 9, [0, 0]),
    }
    assert min(left) == 0
    assert bench.num_errors == 0


class Evicting:
    """Serves everybody; what is named is preempted as soon as something waits that does not fit."""

    def __init__(self, *victims: str) -> None:
        self.victims = victims

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        waiting = tuple(streams[PREFILL])
        running = tuple(streams[DECODE])
        if not waiting:
            return StepPlan(DECODE, running)
        free = limits.free_blocks >= sum(limits.blocks(request.pending) for request in waiting)
        victims = () if free else tuple(r for name in self.victims for r in running if r.request_id == name)
        fresh = tuple(request for request in waiting if not request.units)
        if not fresh and running:
            return StepPlan(DECODE, running)
        return StepPlan(PREFILL, fresh or waiting, preempted=victims)


def test_a_plan_takes_the_blocks_of_residents_for_a_prefill() -> None:
    bench = bench_with({"policy": "fcfs"}, blocks=12)
    adapter = adapter_of(bench)
    adapter.policy = Evicting("b", "a")
    for name in "abc":
        bench.add(name, 12, 6)
    assert bench.step() == ("prefill", ["a", "b", "c"])
    requests = {request.request_id: request for request in adapter.streams}
    bench.add("live", 24, 1)
    assert bench.free_blocks() == 3
    assert bench.step() == ("prefill", ["live"])
    assert bench.names("waiting") == ["a", "b"]
    bench.step()
    assert [r.request_id for r in adapter.streams[PREFILL]] == ["a", "b"]
    assert [(requests[name].is_resident, requests[name].units, requests[name].pending) for name in "ab"] == [
        (False, 1, 13),
        (False, 1, 13),
    ]
    bench.run()
    assert bench.num_errors == 0
    assert bench.reasons() == dict.fromkeys(["a", "b", "c", "live"], "length")
    assert bench.free_blocks() == 12


@pytest.mark.parametrize("policy", ["neustream", "slack"])
def test_a_demoted_resident_loses_its_blocks_to_a_live_prefill(policy: str, table_path: str) -> None:
    bench = bench_with({"policy": policy, "table": table_path}, blocks=20)
    ended: list[Request] = []
    adapter_of(bench).on_end = ended.append
    bench.add("demoted", 40, 12, slo={"ttft_ms": 1, "tpot_ms": 1, "on_miss": "demote"}, ago=100.0)
    while not bench.scheduler.running:
        bench.step()
    assert bench.step() == ("decode", ["demoted"])
    assert bench.free_blocks() == 20 - 11
    bench.add("live", 48, 3, slo=LAX)
    assert bench.step() == ("prefill", ["live"])
    assert (bench.names("waiting"), bench.names("running")) == (["demoted"], ["live"])
    trace = bench.run()
    assert trace[:2] == [("decode", ["live"]), ("decode", ["live"])]
    assert {r.request_id: (str(r.outcome), r.units) for r in ended} == {"live": ("met", 3), "demoted": ("late", 12)}
    assert bench.outputs["demoted"].outputs[0].token_ids == tuple(range(10, 22))
    assert bench.num_errors == 0
    assert bench.free_blocks() == 20


def test_nobody_loses_memory_for_a_prefill_while_a_group_is_swapped_out() -> None:
    bench = bench_with({"policy": "fcfs"}, blocks=9, cpu_blocks=60)
    adapter = adapter_of(bench)
    plan, decide = adapter.policy.plan, adapter.decide
    asked = []

    def evicting(now: float, streams: Streams, limits: Limits) -> StepPlan:
        waiting, running = tuple(streams[PREFILL]), tuple(streams[DECODE])
        if waiting and running:
            return StepPlan(PREFILL, waiting, preempted=running)
        return plan(now, streams, limits)

    def watched(*arguments: Any) -> Any:
        decision = decide(*arguments)
        asked.append((bool(bench.scheduler.swapped), bool(decision.prefill), bool(decision.preempt)))
        return decision

    for i in range(2):
        bench.add(f"wide{i}", 7, 12, n=3)
    while not bench.scheduler.swapped:
        bench.step()
    adapter.policy.plan, adapter.decide = evicting, watched  # type: ignore[method-assign]
    bench.add("live", 4, 5)
    bench.add("next", 4, 5)
    bench.run()
    assert {preempts for swapped, prefills, preempts in asked if swapped and prefills} == {False}
    assert bench.num_errors == 0
    assert set(bench.reasons().values()) == {"length"}


def test_a_second_run_on_the_engine_begins_with_no_history(table_path: str) -> None:
    bench = bench_with({"policy": "fcfs", "table": table_path})
    adapter = adapter_of(bench)
    bench.add("a", 5, 3)
    bench.run()
    assert set(adapter.history.last_seconds) == set(adapter.history.drift) == {PREFILL, DECODE}
    assert len(adapter.history.lengths[""]) == 1
    adapter.reset_history()
    assert (adapter.history.last_seconds, dict(adapter.history.drift), adapter.history.lengths) == ({}, {}, {})
    seen = []
    plan = adapter.policy.plan
    adapter.policy.plan = lambda *asked: seen.append(asked[2]) or plan(*asked)  # type: ignore[func-returns-value, method-assign]
    bench.outputs.clear()
    bench.add("a", 5, 3)
    bench.run()
    assert seen[0].last_seconds is adapter.history.last_seconds


def test_drift_is_learnt_from_steps_that_ran_as_planned(table_path: str) -> None:
    """The policy plans two prefills that vLLM has no room for together; then two decodes that run as planned."""
    bench = bench_with({"policy": "fcfs", "table": table_path}, blocks=10)
    adapter = adapter_of(bench)

    class Eager:
        def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
            waiting, running = tuple(streams[PREFILL]), tuple(streams[DECODE])
            return StepPlan(PREFILL, waiting) if waiting and not running else StepPlan(DECODE, running)

    adapter.policy = Eager()
    bench.add("a", 24, 3)
    bench.add("b", 24, 3)
    assert bench.step() == ("prefill", ["a"])
    assert (set(adapter.history.last_seconds), set(adapter.history.drift)) == ({PREFILL}, set())
    assert bench.step() == ("decode", ["a"])
    assert set(adapter.history.drift) == {DECODE}
    bench.run()
    assert set(adapter.history.drift) == {PREFILL, DECODE}
    assert bench.num_errors == 0


def test_requests_that_are_no_texts_are_refused() -> None:
    bench = bench_with({"policy": "fcfs"})
    group = SimpleNamespace(request_id="a", sampling_params=None, seqs=[SimpleNamespace(get_prompt_len=lambda: 5)])
    with pytest.raises(ValueError, match="asks for an embedding"):
        bench.scheduler.add_seq_group(group)
    assert not bench.scheduler.has_unfinished_seqs()


def test_abort_drops_the_request_wherever_it_is() -> None:
    bench = bench_with({"policy": "fcfs"}, max_seqs=1)
    ended: list[Request] = []
    adapter_of(bench).on_end = ended.append
    for name in "abc":
        bench.add(name, 5, 9)
    bench.step()
    bench.scheduler.abort_seq_group(["a", "c"])
    assert {r.request_id: str(r.outcome) for r in ended} == {"a": "aborted", "c": "aborted"}
    assert [r.request_id for r in adapter_of(bench).streams] == ["b"]
    bench.run()
    assert bench.free_blocks() == 100


@pytest.mark.parametrize(
    ("slo", "message"),
    [
        (5, "must be a mapping"),
        ({"ttft": 5}, "SLO keys must be among"),
        ({"ttft_ms": -5}, "above 0"),
        ({"ttft_ms": 5, "on_miss": "cry"}, "on_miss must be"),
        ({"pslo": 3}, "latency table"),
        ({5: 1}, "SLO keys must be among"),
        ({"ttft_ms": 10**400}, "finite number"),
        ({"ttft_ms": 5, "on_miss": ["reject"]}, "on_miss must be"),
    ],
)
def test_a_bad_slo_is_refused_where_the_request_is_added(slo: Any, message: str) -> None:
    bench = bench_with({"policy": "fcfs"})
    with pytest.raises(ValueError, match=message):
        bench.add("a", 5, slo=slo)
    assert not bench.scheduler.has_unfinished_seqs()
    assert len(adapter_of(bench).streams) == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "needs the key 'policy'"),
        ({"policy": "nope", "table": "TABLE"}, "unknown policy 'nope'"),
        ({"policy": "neustream"}, "needs 'table'"),
        ({"policy": "neustream", "table": "/nowhere.json"}, "/nowhere.json: cannot be read"),
        ({"policy": "neustream", "table": "TABLE", "tabel": 1}, "unknown keys"),
        ({"policy": "neustream", "table": "TABLE", "slo": {"pslo": 0.5}}, "at least 1"),
        ({"policy": "fcfs", "slo": {"pslo": 3}}, "needs 'table'"),
        ({"policy": "fcfs", "on_miss": "cry"}, "on_miss must be"),
        ({"policy": "neustream", "table": "TABLE", "options": {"wings": 2}}, "wings"),
        ({"policy": "neustream", "table": "TABLE", "options": ["wings"]}, "options must be a mapping"),
        ({"policy": "neustream", "table": "TABLE", "slo": [5]}, "slo must be a mapping"),
        ({"policy": ["neustream"], "table": "TABLE"}, "policy must be a name"),
        ({"policy": "neustream", "table": 5}, "table must be a path"),
        ({"policy": "chunked", "table": "TABLE"}, "which vLLM 0.5.4 cannot"),
    ],
)
def test_a_bad_configuration_is_refused_before_a_model_is_loaded(config: Any, message: str, table_path: str) -> None:
    if config and config.get("table") == "TABLE":
        config = {**config, "table": table_path}
    with pytest.raises(ValueError, match=message) as caught:
        SchedulerConfig(256, 32, 256, step_policy=BUILD, step_policy_config=config)
    assert "\n" not in str(caught.value)


def test_vllm_imports_nothing_of_ours(installed: Target, patch_set: PatchSet) -> None:
    for path in patch_set.files:
        content = installed.read(path)
        assert content is not None
        assert b"neustream" not in content.lower(), path
        assert b"vllm_patch" not in content, path
    assert Bench().scheduler.step_policy is None


def test_an_slo_may_tell_the_policy_a_maximum_beyond_the_end_of_the_text():
    slo = {"ttft_ms": 500, "tpot_ms": 50}
    assert told_tokens({**slo, "max_tokens": 64}, 5) == (slo, 64)
    assert told_tokens(slo, 5) == (slo, 5)
    assert told_tokens(None, None) == (None, None)
    assert told_tokens("fast", 5) == ("fast", 5)  # refused elsewhere
    for told in (4, "64", None):
        with pytest.raises(ValueError, match="an SLO's max_tokens must be at least 5 tokens"):
            told_tokens({"max_tokens": told}, 5)
