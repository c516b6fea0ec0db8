"""The executor under the step loop: abort, failing batch, out of memory, and everybody accounted for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from image_helpers import flat_table, image_alone, make_engine

from diffusion_plugin import Engine, ImageRequest
from diffusion_plugin.pipelines.base import Pipeline
from diffusion_plugin.request import Job
from diffusion_plugin.state import Batch, State
from neustream import Outcome
from neustream.goodput import GoodputCounter
from neustream.testing import VirtualClock
from neustream.workload import step_counts

TOLERANCE = 1e-4


def ask(steps: int = 5, seed: int = 0, **fields: Any) -> ImageRequest:
    return ImageRequest(steps=steps, seed=seed, class_label=seed % 1000, **fields)


def run_out(engine: Engine) -> list[Job]:
    ended = []
    while engine.num_unfinished:
        ended += engine.step()[1]
        engine.check_integrity()
    return ended


class Faulty:
    """Stands in for a module of the pipeline, and raises where it is told to."""

    def __init__(self, pipeline: Pipeline, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inner = pipeline.runners[module]
        self.sizes: list[int] = []
        self.error: Exception | None = None
        self.largest = 64
        monkeypatch.setitem(pipeline.runners, module, self)

    def __call__(self, state: State, batch: Batch) -> None:
        self.sizes.append(len(batch.slots))
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if len(batch.slots) > self.largest:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory at batch {len(batch.slots)}")
        self.inner(state, batch)


def test_abort_frees_the_slot_at_the_step_boundary_and_disturbs_nobody(dit: Pipeline) -> None:
    engine = make_engine(dit)
    first, second = engine.submit(ask(10, 1)), engine.submit(ask(12, 2))
    for _ in range(4):
        engine.step()
    assert engine.executor.state.pool.num_taken == 2
    assert engine.abort(first.request.request_id) == [first]
    engine.check_integrity()
    assert engine.executor.state.pool.num_taken == 1
    assert (first.request.outcome, first.request.reason) == (Outcome.ABORTED, "aborted")
    assert run_out(engine) == [second]
    assert second.image is not None
    assert (second.image - image_alone(dit, second.asked)).abs().max() < TOLERANCE
    assert engine.executor.state.pool.num_taken == 0


def test_abort_of_somebody_who_waits_or_is_unknown_takes_no_slot(dit: Pipeline) -> None:
    engine = make_engine(dit)
    job = engine.submit(ask())
    assert engine.abort("nobody") == []
    assert engine.abort(job.request.request_id) == [job]
    assert engine.executor.state.pool.num_taken == 0
    assert engine.num_unfinished == 0


def test_a_reused_slot_shows_nothing_of_its_last_owner(dit: Pipeline) -> None:
    engine = make_engine(dit)
    engine.submit(ask(9, 1, schedule="ddpm"))
    for _ in range(5):
        engine.step()
    engine.abort_all()
    job = engine.submit(ask(9, 2, schedule="ddpm"))
    run_out(engine)
    assert job.image is not None
    assert torch.equal(job.image, image_alone(dit, job.asked))


def test_a_failing_batch_fails_its_own_requests_with_the_reason_and_the_loop_goes_on(
    dit: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = Faulty(dit, "denoise", monkeypatch)
    engine = make_engine(dit)
    doomed = [engine.submit(ask(6, seed)) for seed in range(3)]
    engine.step()
    faulty.error = RuntimeError("a kernel broke")
    _, ended = engine.step()
    engine.check_integrity()
    assert ended == doomed
    assert {(job.request.outcome, job.request.reason) for job in doomed} == {
        (Outcome.FAILED, "denoise: RuntimeError: a kernel broke")
    }
    after = engine.submit(ask(6, 9))
    run_out(engine)
    assert after.request.outcome is Outcome.MET


def test_a_failing_module_leaves_those_in_front_of_other_modules_alone(
    dit: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = Faulty(dit, "vae", monkeypatch)
    faulty.error = ValueError("no picture in there")
    engine = make_engine(dit)
    short, long = engine.submit(ask(2, 1)), engine.submit(ask(8, 2))
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
    jobs = [engine.submit(ask(3, seed)) for seed in range(10)]
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
    jobs = [engine.submit(ask(3, seed)) for seed in range(3)]
    run_out(engine)
    for job in jobs:
        assert job.request.outcome is Outcome.FAILED
        assert "out of memory at batch 1" in (job.request.reason or "")


def test_more_requests_than_slots_make_more_slots(dit: Pipeline) -> None:
    engine = make_engine(dit)
    before = engine.executor.state.pool.num_slots
    jobs = [engine.submit(ask(3, seed)) for seed in range(before + 5)]
    run_out(engine)
    assert engine.executor.state.pool.num_slots == 2 * before
    last = jobs[-1]
    assert last.image is not None
    assert (last.image - image_alone(dit, last.asked)).abs().max() < TOLERANCE


@pytest.mark.parametrize("policy", ["neustream", "clockwork"])
def test_three_hundred_in_three_hundred_accounted_for(dit: Pipeline, policy: str) -> None:
    """Time goes by 2 ms a step, so that many are rejected; some are aborted; none is lost, no slot is leaked."""
    clock = VirtualClock()
    engine = Engine(dit, flat_table(dit), policy=policy, clock=clock, on_step=None)
    counter = GoodputCounter()
    steps = step_counts(2, 9, 300, seed=1)
    ended: list[Job] = []
    for i in range(300):
        engine.submit(ask(int(steps[i]), i, slo_scale=2.5, request_id=f"{i}"))
        if i % 7 == 0:
            ended += engine.abort(f"{i // 2}")
        ended += engine.step()[1]
        clock.now += 0.002
    while engine.num_unfinished:
        plan, done = engine.step()
        ended += done
        clock.now += 0.002
        engine.check_integrity()
        assert plan.module or done or plan.wake is not None or not engine.num_unfinished
    for job in ended:
        counter.add(job.request)
        finished = job.request.outcome in (Outcome.MET, Outcome.LATE)
        assert (job.image is not None) == finished
    assert sorted(int(job.request.request_id) for job in ended) == list(range(300))
    outcomes = Counter(job.request.outcome for job in ended)
    assert outcomes[Outcome.MET] > 0
    assert outcomes[Outcome.REJECTED] > 0
    assert outcomes[Outcome.ABORTED] > 0
    assert counter.summary()["requests"] == 300
    assert engine.executor.state.pool.num_taken == 0


def test_a_demoted_request_is_served_in_the_end(dit: Pipeline) -> None:
    clock = VirtualClock()
    engine = Engine(dit, flat_table(dit), clock=clock)
    job = engine.submit(ask(4, 1, slo_scale=1.0, on_miss="demote"))
    clock.now += 1.0
    run_out(engine)
    assert job.request.outcome is Outcome.LATE
    assert job.image is not None


def test_an_id_in_use_and_a_table_without_the_modules_are_refused(dit: Pipeline, palette: Pipeline) -> None:
    engine = make_engine(dit)
    engine.submit(ask(3, request_id="a"))
    with pytest.raises(ValueError, match="request id 'a' is in use"):
        engine.submit(ask(3, request_id="a"))
    with pytest.raises(ValueError, match="the table of palette-nano on test lacks vae"):
        Engine(dit, flat_table(palette))
