"""The executor under the step loop: abort, failing batch, out of memory, and everybody accounted for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from image_helpers import flat_table, image_alone, make_engine, submit
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_plugin import Engine, ImageRequest, executor
from diffusion_plugin.measure import ModuleTimer
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.state import Batch
from neustream import Outcome, Request
from neustream.driver import Ask, Driver
from neustream.goodput import GoodputCounter
from neustream.plan import UNLIMITED
from neustream.testing import VirtualClock
from neustream.workload import step_counts

TOLERANCE = 1e-4
OUT_OF_MEMORY = torch.cuda.OutOfMemoryError


def ask(steps: int = 5, seed: int = 0, **fields: Any) -> ImageRequest:
    return ImageRequest(steps=steps, seed=seed, class_label=seed % 1000, **fields)


def run_out(engine: Engine) -> list[Request]:
    ended = []
    while engine.num_unfinished:
        engine.step()
        ended += engine.take_ended()
        engine.check_integrity()
    return ended


class Faulty:
    """Stands in for the denoising step or a module around it, and raises where it is told to."""

    def __init__(self, pipeline: Pipeline, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inner: Any = executor.denoise if module == "denoise" else pipeline.runners[module]
        self.sizes: list[int] = []
        self.error: Exception | None = None
        self.largest = 64
        if module == "denoise":
            monkeypatch.setattr(executor, "denoise", self)
        else:
            monkeypatch.setitem(pipeline.runners, module, self)

    def __call__(self, *arguments: Any) -> None:
        batch: Batch = arguments[-1]
        self.sizes.append(len(batch.slots))
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if len(batch.slots) > self.largest:
            raise OUT_OF_MEMORY(f"CUDA out of memory at batch {len(batch.slots)}")
        self.inner(*arguments)


def test_abort_frees_the_slot_at_the_step_boundary_and_disturbs_nobody(dit: Pipeline) -> None:
    engine = make_engine(dit)
    first, second = submit(engine, ask(10, 1)), submit(engine, ask(12, 2))
    for _ in range(4):
        engine.step()
    assert engine.executor.state.pool.num_taken == 2
    engine.abort(first.request.request_id)
    assert engine.take_ended() == [first.request]
    engine.check_integrity()
    assert engine.executor.state.pool.num_taken == 1
    assert (first.request.outcome, first.request.reason) == (Outcome.ABORTED, "aborted")
    assert run_out(engine) == [second.request]
    assert second.image is not None
    assert (second.image - image_alone(dit, second.asked)).abs().max() < TOLERANCE
    assert engine.executor.state.pool.num_taken == 0


def test_abort_of_somebody_who_waits_or_is_unknown_takes_no_slot(dit: Pipeline) -> None:
    engine = make_engine(dit)
    job = submit(engine, ask())
    engine.abort("nobody")
    assert engine.take_ended() == []
    engine.abort(job.request.request_id)
    assert engine.take_ended() == [job.request]
    assert engine.executor.state.pool.num_taken == 0
    assert engine.num_unfinished == 0


def test_a_reused_slot_shows_nothing_of_its_last_owner(dit: Pipeline) -> None:
    engine = make_engine(dit)
    submit(engine, ask(9, 1, schedule="ddpm"))
    for _ in range(5):
        engine.step()
    engine.abort_all()
    job = submit(engine, ask(9, 2, schedule="ddpm"))
    run_out(engine)
    assert job.image is not None
    assert torch.equal(job.image, image_alone(dit, job.asked))


def test_a_failing_batch_fails_its_own_requests_with_the_reason_and_the_loop_goes_on(
    dit: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = Faulty(dit, "denoise", monkeypatch)
    engine = make_engine(dit)
    doomed = [submit(engine, ask(6, seed)) for seed in range(3)]
    engine.step()
    faulty.error = RuntimeError("a kernel broke")
    engine.step()
    engine.check_integrity()
    assert engine.take_ended() == [job.request for job in doomed]
    assert {(job.request.outcome, job.request.reason) for job in doomed} == {
        (Outcome.FAILED, "denoise: RuntimeError: a kernel broke")
    }
    after = submit(engine, ask(6, 9))
    run_out(engine)
    assert after.request.outcome is Outcome.MET


def test_a_failing_module_leaves_those_in_front_of_other_modules_alone(
    dit: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = Faulty(dit, "vae", monkeypatch)
    faulty.error = ValueError("no picture in there")
    engine = make_engine(dit)
    short, long = submit(engine, ask(2, 1)), submit(engine, ask(8, 2))
    run_out(engine)
    assert (short.request.outcome, short.request.reason) == (Outcome.FAILED, "vae: ValueError: no picture in there")
    assert long.request.outcome is Outcome.MET


@pytest.mark.parametrize("module", ["denoise", "vae"])
def test_out_of_memory_halves_the_batch_cap_and_retries(
    dit: Pipeline, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    faulty = Faulty(dit, module, monkeypatch)
    faulty.largest = 3
    engine = make_engine(dit)
    jobs = [submit(engine, ask(3, seed)) for seed in range(10)]
    run_out(engine)
    assert faulty.sizes[:7] == [10, 5, 2, 2, 2, 2, 2]
    assert all(size == 2 for size in faulty.sizes[7:])
    assert engine.executor.limits().max_batch[module] == 2
    for job in jobs:
        assert job.request.outcome is Outcome.MET
        assert job.image is not None
        assert (job.image - image_alone(dit, job.asked)).abs().max() < TOLERANCE


def test_out_of_memory_alone_fails_the_request(dit: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = Faulty(dit, "denoise", monkeypatch)
    faulty.largest = 0
    engine = make_engine(dit)
    jobs = [submit(engine, ask(3, seed)) for seed in range(3)]
    run_out(engine)
    for job in jobs:
        assert job.request.outcome is Outcome.FAILED
        assert "out of memory at batch 1" in (job.request.reason or "")


class Refusing:
    """Stands in for a part of the slot pool: raises where it is told to, and counts how often it was asked."""

    def __init__(self, target: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inner = getattr(target, name)
        self.refusals = 0
        self.left = 1 << 30
        monkeypatch.setattr(target, name, self)

    def __call__(self, *arguments: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            self.refusals += 1
            raise OUT_OF_MEMORY("CUDA out of memory")
        return self.inner(*arguments)


def test_more_requests_than_slots_make_more_slots(dit: Pipeline) -> None:
    engine = make_engine(dit)
    before = engine.executor.state.pool.num_slots
    jobs = [submit(engine, ask(3, seed)) for seed in range(before + 5)]
    engine.step()
    assert engine.executor.state.pool.num_slots == 2 * before
    run_out(engine)
    last = jobs[-1]
    assert last.image is not None
    assert (last.image - image_alone(dit, last.asked)).abs().max() < TOLERANCE


def test_where_memory_allows_no_more_slots_the_requests_without_one_wait(
    dit: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(dit)
    pool = engine.executor.state.pool
    growth = Refusing(pool, "_grow", monkeypatch)
    jobs = [submit(engine, ask(3 + seed % 3, seed)) for seed in range(20)]
    first = engine.step()
    assert first is not None
    assert first.batch_size == 16, "the record tells of those that ran"
    assert engine.executor.limits().max_resident == 16
    assert {job.slot for job in jobs[16:]} == {None}
    run_out(engine)
    assert growth.refusals == 1, "a refusal is remembered"
    assert engine.executor.max_batch == dict.fromkeys(dit.modules, 64), "and is not blamed on the batch"
    for job in jobs:
        assert job.request.outcome is Outcome.MET
        assert job.image is not None
        assert (job.image - image_alone(dit, job.asked)).abs().max() < TOLERANCE
    assert engine.executor.limits().max_resident == UNLIMITED, "once they have ended it may be tried again"


@pytest.mark.parametrize("policy", ["neustream", "clockwork", "slack"])
def test_every_policy_serves_everybody_where_slots_are_few(
    dit: Pipeline, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    engine = make_engine(dit, policy=policy)
    Refusing(engine.executor.state.pool, "_grow", monkeypatch)
    steps = step_counts(2, 9, 50, seed=3)
    for seed in range(50):
        submit(engine, ask(int(steps[seed]), seed, slo_scale=1e6))
        engine.step()
    run_out(engine)
    assert engine.executor.state.pool.num_taken == 0
    engine.check_integrity()
    assert engine.executor.max_batch == dict.fromkeys(dit.modules, 64)


def test_memory_for_a_first_latent_may_run_out_too(dit: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(dit)
    running = submit(engine, ask(6, 1))
    engine.step()
    Refusing(dit, "first_fields", monkeypatch).left = 1
    late = submit(engine, ask(6, 2))
    record = engine.step()
    assert record is not None
    assert record.request_ids == (running.request.request_id,)
    run_out(engine)
    assert (running.request.outcome, late.request.outcome) == (Outcome.MET, Outcome.MET)


def test_where_nobody_holds_a_slot_a_request_that_gets_none_fails(
    dit: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(dit)
    Refusing(dit, "first_fields", monkeypatch)
    jobs = [submit(engine, ask(3, seed)) for seed in range(2)]
    run_out(engine)
    assert {(job.request.outcome, job.request.reason) for job in jobs} == {
        (Outcome.FAILED, "slots: OutOfMemoryError: CUDA out of memory")
    }


def test_pools_shrink_by_halves_when_a_busy_time_is_over(dit: Pipeline) -> None:
    engine = make_engine(dit)
    pool = engine.executor.state.pool
    long = [submit(engine, ask(30, seed, schedule="ddpm")) for seed in range(3)]
    engine.step()
    for seed in range(60):
        submit(engine, ask(4, 100 + seed))
    late = submit(engine, ask(40, 7, schedule="ddpm"))
    engine.step()
    assert pool.num_slots == 64
    assert late.slot is not None
    assert late.slot >= 32, "it has to move when the pool shrinks"
    sizes = {pool.num_slots}
    while engine.num_unfinished > 4:
        engine.step()
        engine.check_integrity()
        sizes.add(pool.num_slots)
    assert sizes == {64, 16}
    assert pool["latent"].shape[0] == 16
    run_out(engine)
    assert pool.num_slots == 16, "never below the initial size"
    for job in (*long, late):
        assert job.image is not None
        assert (job.image - image_alone(dit, job.asked)).abs().max() < TOLERANCE


def test_a_pool_that_cannot_shrink_for_want_of_memory_stays_as_it_is(
    dit: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(dit)
    pool = engine.executor.state.pool
    shrinking = Refusing(pool, "shrink", monkeypatch)
    jobs = [submit(engine, ask(3, seed)) for seed in range(20)]
    run_out(engine)
    assert (pool.num_slots, pool.num_taken) == (32, 0)
    assert shrinking.refusals == 20
    assert {job.request.outcome for job in jobs} == {Outcome.MET}


@pytest.mark.parametrize("name", ["palette", "dit", "sd"])
def test_memory_that_runs_out_while_an_image_is_fetched_costs_no_step_twice(
    name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    pipeline: Pipeline = request.getfixturevalue(name)
    asked = [ImageRequest(steps=5, seed=seed, **pipeline.example(seed)) for seed in range(3)]
    alone = [image_alone(pipeline, each) for each in asked]
    fetching = Refusing(pipeline, "finished", monkeypatch)
    fetching.left = 1
    engine = make_engine(pipeline)
    jobs = [submit(engine, each) for each in asked]
    run_out(engine)
    assert fetching.refusals == 1
    for job, image in zip(jobs, alone, strict=True):
        assert job.request.outcome is Outcome.MET
        assert job.image is not None
        assert (job.image - image).abs().max() < TOLERANCE
    assert engine.executor.max_batch == dict.fromkeys(pipeline.modules, 64)


def test_an_image_that_cannot_be_fetched_at_all_fails_its_request_alone(
    palette: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    Refusing(palette, "finished", monkeypatch).left = 2
    engine = make_engine(palette)
    jobs = [submit(engine, ImageRequest(steps=3, seed=seed, **palette.example(seed))) for seed in range(2)]
    run_out(engine)
    assert (jobs[0].request.outcome, jobs[0].request.reason) == (
        Outcome.FAILED,
        "image: OutOfMemoryError: CUDA out of memory",
    )
    assert jobs[1].request.outcome is Outcome.MET


@pytest.mark.parametrize("name", ["palette", "dit", "sd"])
def test_a_finished_image_is_one_copy_and_nobody_elses(name: str, request: pytest.FixtureRequest) -> None:
    pipeline: Pipeline = request.getfixturevalue(name)
    engine = make_engine(pipeline)
    jobs = [submit(engine, ImageRequest(steps=2, seed=seed, **pipeline.example(seed))) for seed in range(3)]
    engine.step()  # this one writes the inputs to the slots
    log = Copies()
    while engine.num_unfinished:
        with log:
            engine.step()
    field = engine.executor.state.pool[pipeline.picture_field]
    assert log.of_shape(field.shape[1:]) == 3, "one copy each"
    for job in jobs:
        assert job.image is not None
        storage = job.image.untyped_storage()
        assert storage.nbytes() == job.image.nbytes, "no larger tensor lives on behind it"
        assert storage.data_ptr() != field.untyped_storage().data_ptr()
        job.image.mul_(1.0)  # it is the caller's: no inference tensor


class Copies(TorchDispatchMode):
    """Counts the tensors that are copied whole, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if str(func) in ("aten._to_copy.default", "aten.clone.default", "aten.copy_.default"):
            self.shapes.append(result.shape)
        return result

    def of_shape(self, shape: torch.Size) -> int:
        return sum(seen == shape for seen in self.shapes)


@pytest.mark.parametrize("policy", ["neustream", "clockwork"])
def test_three_hundred_in_three_hundred_accounted_for(dit: Pipeline, policy: str) -> None:
    """Time goes by 2 ms a step, so that many are rejected; some are aborted; none is lost, no slot is leaked."""
    clock = VirtualClock()
    engine = Engine(dit, flat_table(dit), policy=policy, clock=clock)
    counter = GoodputCounter()
    steps = step_counts(2, 9, 300, seed=1)
    ended: list[Request] = []

    def take() -> list[Request]:
        done = engine.take_ended()
        for request in done:
            finished = request.outcome in (Outcome.MET, Outcome.LATE)
            assert (engine.result(request.request_id).image is not None) == finished
        ended.extend(done)
        return done

    for i in range(300):
        engine.submit_image(ask(int(steps[i]), i, slo_scale=2.5, request_id=f"{i}"))
        if i % 7 == 0:
            engine.abort(f"{i // 2}")
        engine.step()
        take()
        clock.now += 0.002
    while engine.num_unfinished:
        record = engine.step()
        clock.now += 0.002
        engine.check_integrity()
        assert take() or record or engine.wake is not None or not engine.num_unfinished
    for request in ended:
        counter.on_end(request)
    assert sorted(int(request.request_id) for request in ended) == list(range(300))
    outcomes = Counter(request.outcome for request in ended)
    assert outcomes[Outcome.MET] > 0
    assert outcomes[Outcome.REJECTED] > 0
    assert outcomes[Outcome.ABORTED] > 0
    assert counter.summary()["requests"] == 300
    assert engine.executor.state.pool.num_taken == 0


def test_the_engine_is_a_driver(dit: Pipeline) -> None:
    clock = VirtualClock(5.0)
    driver: Driver = Engine(dit, flat_table(dit), clock=clock)
    driver.submit(Ask("a", 4.5, ask(3, 1), slo={"e2el_ms": 700}, on_miss="demote"))
    driver.submit(Ask("b", 5.0, ask(30, 2)))
    with pytest.raises(ValueError, match="request id 'a' is in use"):
        driver.submit(Ask("a", 5.0, ask(3)))
    with pytest.raises(ValueError, match="its payload must be an ImageRequest, got 'a cat'"):
        driver.submit(Ask("c", 5.0, "a cat"))
    with pytest.raises(ValueError, match="SLO keys must be among"):
        driver.submit(Ask("c", 5.0, ask(3), slo={"ttft": 1}))
    assert driver.num_unfinished == 2
    records = [driver.step() for _ in range(4)]
    assert [(r.kind, r.request_ids, r.time) for r in records if r is not None] == (
        [("denoise", ("a", "b"), 5.0)] * 3 + [("vae", ("a",), 5.0)]
    )
    assert [round(seconds, 6) for seconds in records[0].rest_seconds] == [0.2, 0.093]  # type: ignore[union-attr]
    (done,) = driver.take_ended()
    assert (done.request_id, done.outcome, done.arrival, done.on_miss) == ("a", Outcome.MET, 4.5, "demote")
    assert isinstance(driver, Engine)
    assert driver.result("a").image is not None
    assert driver.take_ended() == []
    with pytest.raises(KeyError):
        driver.result("a")
    driver.abort("b", "no longer wanted")
    assert driver.step() is None
    assert driver.wake is None
    driver.submit_image(ask(3, request_id="d"))
    driver.close()
    assert [(r.request_id, r.outcome, r.reason) for r in driver.take_ended()] == [
        ("b", Outcome.ABORTED, "no longer wanted"), ("d", Outcome.ABORTED, "the engine was closed"),
    ]  # fmt: skip
    with pytest.raises(RuntimeError, match="the engine is closed"):
        driver.submit(Ask("e", 5.0, ask(3)))


def test_what_steps_took_is_each_engines_own_business(dit: Pipeline) -> None:
    clock = VirtualClock()
    table = flat_table(dit)
    ModuleTimer(dit).warm_up((1, 2))
    first = Engine(dit, table, clock=clock)
    assert (dict(first.loop.history.drift), first.loop.history.last_seconds) == ({}, {})
    first.submit_image(ask(3, 1))
    first.step()
    assert set(first.loop.history.drift) == {"denoise"}
    assert dict(Engine(dit, table, clock=clock).loop.history.drift) == {}


def test_a_demoted_request_is_served_in_the_end(dit: Pipeline) -> None:
    clock = VirtualClock()
    engine = Engine(dit, flat_table(dit), clock=clock)
    job = submit(engine, ask(4, 1, slo_scale=1.0, on_miss="demote"))
    clock.now += 1.0
    run_out(engine)
    assert job.request.outcome is Outcome.LATE
    assert job.image is not None


def test_an_id_in_use_and_a_table_without_the_modules_are_refused(dit: Pipeline, palette: Pipeline) -> None:
    engine = make_engine(dit)
    submit(engine, ask(3, request_id="a"))
    with pytest.raises(ValueError, match="request id 'a' is in use"):
        submit(engine, ask(3, request_id="a"))
    with pytest.raises(ValueError, match="the table of palette-nano on test lacks vae"):
        Engine(dit, flat_table(palette))
