"""The server in its thread, and the client in its process: results, aborts, failures, a client that dies."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from image_helpers import flat_table, image_alone, make_engine, submit

from diffusion_plugin import ImageRequest, Server, load_pipeline, quick_table, serve
from diffusion_plugin.engine import Engine
from diffusion_plugin.pipelines.base import Pipeline
from exp.harness.client import Client, ClientDied
from neustream import Outcome, StepPlan
from neustream.driver import Ask
from neustream.policies import make_policy


def ask(steps: int = 5, seed: int = 0, **fields: Any) -> ImageRequest:
    return ImageRequest(steps=steps, seed=seed, class_label=seed % 1000, **{"slo_scale": 1e6, **fields})


class Gate:
    """A policy that waits at its door before every plan until it is opened."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.open = threading.Event()
        self.error: Exception | None = None

    def plan(self, *arguments: Any) -> StepPlan:
        assert self.open.wait(30)
        if self.error is not None:
            raise self.error
        plan: StepPlan = self.inner.plan(*arguments)
        return plan


def test_submitted_requests_come_back_with_image_timing_and_verdict(dit: Pipeline) -> None:
    with Server(dit, table=flat_table(dit)) as server:
        handles = [server.submit(ask(4 + seed, seed)) for seed in range(5)]
        results = [handle.result(30) for handle in handles]
    for seed, (handle, result) in enumerate(zip(handles, results, strict=True)):
        assert handle.is_done
        assert result.request_id == handle.request_id
        assert result.met
        assert result.steps == 4 + seed
        assert result.arrival < result.ended_at <= result.deadline
        assert result.image is not None
        assert (result.image - image_alone(dit, ask(4 + seed, seed))).abs().max() < 1e-4


def test_requests_from_many_threads_are_all_served(dit: Pipeline) -> None:
    results = []
    with Server(dit, table=flat_table(dit)) as server:

        def client(first: int) -> None:
            results.extend(handle.result(30) for handle in [server.submit(ask(3, first + i)) for i in range(5)])

        threads = [threading.Thread(target=client, args=(10 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({result.request_id for result in results}) == 20
    assert all(result.met for result in results)


def test_an_aborted_request_ends_at_the_next_boundary_and_has_no_image(dit: Pipeline) -> None:
    gate = Gate(make_policy("neustream", flat_table(dit)))
    with Server(dit, table=flat_table(dit), policy=gate) as server:
        kept, withdrawn = server.submit(ask(6, 1)), server.submit(ask(900, 2))
        withdrawn.abort()
        gate.open.set()
        result = withdrawn.result(30)
        assert kept.result(30).met
        withdrawn.abort()
    assert result.outcome is Outcome.ABORTED
    assert not result.met
    assert result.image is None
    with pytest.raises(ValueError, match="has no image: aborted"):
        result.pil()


def test_a_request_that_cannot_be_met_comes_back_rejected(dit: Pipeline) -> None:
    with Server(dit, table=flat_table(dit)) as server:
        result = server.submit(ask(20, 1, slo_ms=0.001)).result(30)
    assert result.outcome is Outcome.REJECTED
    assert result.reason is not None
    assert "alone it takes" in result.reason


def test_a_broken_loop_leaves_nobody_waiting(dit: Pipeline) -> None:
    gate = Gate(make_policy("neustream", flat_table(dit)))
    gate.error = KeyError("a bug")
    server = Server(dit, table=flat_table(dit), policy=gate)
    handles = [server.submit(ask(5, seed)) for seed in range(3)]
    gate.open.set()
    for handle in handles:
        with pytest.raises(RuntimeError, match="the server failed: KeyError"):
            handle.result(30)
    with pytest.raises(RuntimeError, match="the server failed"):
        server.close()
    with pytest.raises(RuntimeError, match="the server has stopped"):
        server.submit(ask())


def test_bad_input_is_refused_where_it_is_submitted(dit: Pipeline) -> None:
    with Server(dit, table=flat_table(dit)) as server:
        with pytest.raises(ValueError, match="class_label must be a whole number in 0…999, got 1000"):
            server.submit(ImageRequest(steps=5, class_label=1000))
        assert server.submit(ask()).result(30).met


def test_serve_returns_results_in_the_order_of_the_requests() -> None:
    pipeline = load_pipeline("palette-nano", device="cpu")
    requests = [ImageRequest(steps=n, slo_scale=1e6, **pipeline.example(n)) for n in (9, 2, 5)]
    results = serve(pipeline, requests, table=flat_table(pipeline))
    assert [result.steps for result in results] == [9, 2, 5]
    assert all(result.met for result in results)


def test_the_quick_table_has_every_module_and_its_largest_batch() -> None:
    pipeline = load_pipeline("sd-nano", device="cpu")
    table = quick_table(pipeline, sizes=(1, 2, 4))
    assert {module: model.largest for module, model in table.modules.items()} == dict.fromkeys(pipeline.modules, 4)  # type: ignore[attr-defined]
    assert table.info["dtype"] == "float32"


def pump(engine: Engine, client: Client) -> None:
    """Take in what the client sends until it is done or dies."""
    while not client.is_done:
        for sent in client.receive(0.05):
            submit(engine, ImageRequest(**sent.payload, request_id=sent.request_id))
        if engine.num_unfinished:
            engine.step()


def test_the_client_sends_from_its_own_process(dit: Pipeline) -> None:
    engine = make_engine(dit)
    payloads = [{"steps": 3 + i, "seed": i, "class_label": i} for i in range(4)]
    with Client([Ask(f"m{i}", 0.01 * i, payload) for i, payload in enumerate(payloads)]) as client:
        assert client.pid != os.getpid()
        client.start()
        pump(engine, client)
    while engine.num_unfinished:
        engine.step()
    engine.check_integrity()


def test_when_the_client_dies_its_requests_can_be_withdrawn_and_their_slots_are_free(dit: Pipeline) -> None:
    engine = make_engine(dit)
    messages = [Ask(f"m{i}", 0.0, {"steps": 1000, "class_label": i}) for i in range(4)]
    messages.append(Ask("never sent", 3600.0, {}))
    with Client(messages) as client:
        client.start()
        while engine.num_unfinished < 4:
            for sent in client.receive(1.0):
                submit(engine, ImageRequest(**sent.payload, request_id=sent.request_id))
        engine.step()
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(ClientDied):
            pump(engine, client)
    engine.abort_all("the client is gone")
    ended = engine.take_ended()
    assert [(request.outcome, request.reason) for request in ended] == [(Outcome.ABORTED, "the client is gone")] * 4
    engine.check_integrity()
    assert engine.executor.state.pool.num_taken == 0
