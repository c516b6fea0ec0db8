"""The scheduler class without a model: nothing is lost, the books are true, a policy's plan is what runs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from scheduler_worlds import World, make_request, make_scheduler
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

from neustream.plan import Piece, Rejection, StepPlan
from neustream.policies import POLICIES
from neustream.route import DECODE, PREFILL

LLM_POLICIES = [name for name, entry in POLICIES.items() if entry.llm]
TIGHT = {"ttft_ms": 60, "tpot_ms": 8}


def prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts of all lengths; some begin alike."""
    draw = random.Random(seed)
    common = [draw.randrange(5, 1000) for _ in range(48)]
    made = [[draw.randrange(5, 1000) for _ in range(draw.choice([3, 20, 60, 200]))] for _ in range(count)]
    return [common + prompt if draw.random() < 0.3 else prompt for prompt in made]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", [None, *LLM_POLICIES])
@pytest.mark.parametrize("num_blocks", [40, 400])
def test_every_request_ends_once_under_every_policy(
    config_folder: Path, table_path: str, policy: str | None, depth: int, num_blocks: int
) -> None:
    """Early ends, aborts, preemption and rejections; steps one by one and overlapping."""
    config: dict[str, Any] = {"policy": policy} if policy is None else {"policy": policy, "table": table_path}
    scheduler = make_scheduler(config_folder, config, num_blocks=num_blocks, async_scheduling=depth > 1)
    world = World(scheduler, depth=depth, eos_share=0.03, seed=num_blocks)
    draw = random.Random(7)
    texts, withdrawn = prompts(60, 3), set()
    for number, prompt in enumerate(texts):
        slo = draw.choice([None, TIGHT, {"ttft_ms": 1e6, "tpot_ms": 1e5}, {"e2el_ms": 500}])
        scheduler.add_request(make_request(f"r{number}", prompt, draw.choice([1, 5, 40]), slo=slo))
        for _ in range(draw.choice([0, 1, 3])):
            world.step()
        if draw.random() < 0.15:
            name = f"r{draw.randrange(number + 1)}"
            withdrawn.update({name} & scheduler.requests.keys())
            scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
    world.run()
    assert world.finished.keys() | withdrawn == {f"r{number}" for number in range(60)}
    assert not world.finished.keys() & withdrawn
    assert scheduler.num_errors == 0
    assert (len(scheduler.books.streams), scheduler.books.ledger.open) == (0, {})
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    assert free == num_blocks - 1


class Scripted:
    """A policy that a function is."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan


def scripted(config_folder: Path, plan: Any, **options: Any) -> Any:
    scheduler = make_scheduler(config_folder, None, **options)
    scheduler.step_policy = Scripted(plan)
    return scheduler


def test_what_is_planned_is_what_runs(config_folder: Path) -> None:
    """A prefill of two in the policy's order, a decode of one of them, and a piece beside a decode."""
    plans = [
        lambda streams: StepPlan(PREFILL, (streams.get("b"), streams.get("a"))),
        lambda streams: StepPlan(DECODE, (streams.get("a"),)),
        lambda streams: StepPlan(DECODE, (streams.get("b"),), pieces=(Piece(streams.get("c"), 10),)),
        lambda streams: StepPlan(PREFILL, pieces=(Piece(streams.get("c"), 90),)),
    ]
    script = iter(plans)
    scheduler = scripted(config_folder, lambda now, streams, limits: next(script)(streams), caching=False)
    for name, length in (("a", 20), ("b", 30), ("c", 100)):
        scheduler.add_request(make_request(name, list(range(100, 100 + length)), 9))
    world = World(scheduler)
    for _ in plans:
        world.step()
    assert world.batches == [{"b": 30, "a": 20}, {"a": 1}, {"b": 1, "c": 10}, {"c": 90}]
    assert world.tokens == {"a": 2, "b": 2, "c": 1}


def test_a_planned_preemption_frees_its_blocks_before_the_step(config_folder: Path) -> None:
    calls = iter(range(100))

    def plan(now: float, streams: Any, limits: Any) -> StepPlan:
        number = next(calls)
        if number == 0:
            return StepPlan(PREFILL, (streams.get("a"),))
        if number == 1:
            return StepPlan(PREFILL, (streams.get("b"),), preempted=(streams.get("a"),))
        return StepPlan(DECODE, tuple(streams[DECODE])) if streams[DECODE] else StepPlan(PREFILL, (streams.get("a"),))

    scheduler = scripted(config_folder, plan, num_blocks=8, caching=False)
    for name in ("a", "b"):
        scheduler.add_request(make_request(name, list(range(100, 196)), 3, ignore_eos=True))
    world = World(scheduler)
    world.run()
    assert world.batches[:2] == [{"a": 96}, {"b": 96}]
    assert world.tokens == {"a": 3, "b": 3}
    assert (scheduler.num_errors, scheduler.num_stalls) == (0, 0)


def test_a_request_given_up_ends_with_its_reason(config_folder: Path) -> None:
    reason = "first unit due in -1 s"
    plan = lambda now, streams, limits: StepPlan(rejected=tuple(Rejection(r, reason) for r in streams))  # noqa: E731
    scheduler = scripted(config_folder, plan)
    scheduler.add_request(make_request("a", [5, 6, 7], 9, slo=TIGHT))
    world = World(scheduler)
    world.run()
    output = world.finished["a"]
    assert (output.finish_reason, output.stop_reason, output.new_token_ids) == (FinishReason.ABORT, reason, [])


@pytest.mark.parametrize("slo", [{"ttft_ms": "fast"}, {"tfft_ms": 3}, {"class": "gold"}])
def test_a_malformed_slo_ends_its_request_alone(config_folder: Path, table_path: str, slo: dict[str, Any]) -> None:
    scheduler = make_scheduler(config_folder, {"policy": "neustream", "table": table_path})
    scheduler.add_request(make_request("bad", [5, 6, 7], 9, slo=slo))
    scheduler.add_request(make_request("good", [5, 6, 7], 9, ignore_eos=True))
    world = World(scheduler)
    world.run()
    assert world.finished["bad"].finish_reason == FinishReason.ABORT
    assert world.finished["bad"].stop_reason.startswith("slo: ")
    assert (world.finished["good"].finish_reason, world.tokens["good"]) == (FinishReason.LENGTH, 9)


def test_a_policy_that_fails_is_counted_and_the_engine_goes_on(config_folder: Path) -> None:
    def plan(now: float, streams: Any, limits: Any) -> StepPlan:
        raise ZeroDivisionError("a fault")

    scheduler = scripted(config_folder, plan)
    scheduler.add_request(make_request("a", [5, 6, 7], 4, ignore_eos=True))
    world = World(scheduler)
    world.run()
    assert world.tokens == {"a": 4}
    assert scheduler.num_errors == 4


def test_a_plan_that_nothing_can_come_of_does_not_stop_the_engine(config_folder: Path) -> None:
    """The policy asks for more than memory holds; vLLM schedules what it can instead."""

    def plan(now: float, streams: Any, limits: Any) -> StepPlan:
        if streams[PREFILL]:
            return StepPlan(PREFILL, tuple(streams[PREFILL])[-1:])
        return StepPlan(DECODE, tuple(streams[DECODE]))

    scheduler = scripted(config_folder, plan, num_blocks=10, caching=False)
    for number in range(3):
        scheduler.add_request(make_request(f"r{number}", list(range(100, 196)), 8, ignore_eos=True))
    world = World(scheduler)
    world.run()
    assert world.tokens == {"r0": 8, "r1": 8, "r2": 8}
    assert scheduler.num_stalls > 0


def test_held_requests_make_room_for_those_that_run(config_folder: Path) -> None:
    """Decoding the oldest alone takes blocks from the newest, which vLLM does not see in that step."""

    def plan(now: float, streams: Any, limits: Any) -> StepPlan:
        if streams[PREFILL] and limits.free_blocks >= 2:
            return StepPlan(PREFILL, tuple(streams[PREFILL])[:1])
        return StepPlan(DECODE, tuple(streams[DECODE])[:1])

    scheduler = scripted(config_folder, plan, num_blocks=6, caching=False)
    for number in range(2):
        scheduler.add_request(make_request(f"r{number}", list(range(100, 130)), 40, ignore_eos=True))
    world = World(scheduler)
    world.run()
    assert world.tokens == {"r0": 40, "r1": 40}
    assert scheduler.num_errors == 0


def test_a_cached_prefix_is_known_before_the_prompt_is_admitted(config_folder: Path) -> None:
    seen = []

    def plan(now: float, streams: Any, limits: Any) -> StepPlan:
        seen.extend((request.request_id, request.pending) for request in streams[PREFILL])
        if streams[PREFILL]:
            return StepPlan(PREFILL, tuple(streams[PREFILL])[:1])
        return StepPlan(DECODE, tuple(streams[DECODE]))

    scheduler = scripted(config_folder, plan)
    prompt = list(range(100, 164))
    scheduler.add_request(make_request("a", prompt, 2, ignore_eos=True))
    world = World(scheduler)
    world.run()
    scheduler.add_request(make_request("b", [*prompt, 7, 8, 9], 2, ignore_eos=True))
    world.run()
    assert seen == [("a", 64), ("b", 3)]
    assert [batch for batch in world.batches if batch] == [{"a": 64}, {"a": 1}, {"b": 3}, {"b": 1}]


def test_steps_are_recorded_with_what_the_table_said(config_folder: Path, table_path: str) -> None:
    scheduler = make_scheduler(config_folder, {"policy": "fcfs", "table": table_path})
    records, ends = [], []
    scheduler.books.on_step, scheduler.books.on_end = records.append, ends.append
    scheduler.add_request(make_request("a", list(range(100, 150)), 3, ignore_eos=True, slo=TIGHT))
    World(scheduler).run()
    assert [(record.kind, record.request_ids, record.extra["tokens"]) for record in records] == [
        ("prefill", ("a",), 50),
        ("decode", ("a",), 1),
        ("decode", ("a",), 1),
    ]
    assert records[0].predicted_seconds == pytest.approx(4e-3 + 50e-5)
    assert records[1].predicted_seconds == pytest.approx(4e-3 + 51e-8)
    assert [(request.request_id, request.units) for request in ends] == [("a", 3)]
    assert scheduler.books.history.lengths[""].quantile(0.5) == 3
