"""The plug-in on a real engine: the same tokens as stock vLLM, whatever the policy does; the driver's accounts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from neustream.driver import Ask
from neustream.policies import make_policy
from neustream.request import Outcome
from neustream.tables import LatencyTable
from vllm_plugin.driver import PluginDriver
from vllm_plugin.engine import scheduler_of

NUM_REQUESTS = 200
SMALL_MEMORY = {"num_gpu_blocks_override": 24, "max_model_len": 480, "block_size": 32}
LOOSE = {"ttft_ms": 1e7, "tpot_ms": 1e6}


def texts() -> list[tuple[list[int], int, int]]:
    """Prompt, maximum, and where the text ends."""
    draw = random.Random(1)
    common = [draw.randrange(5, 1000) for _ in range(70)]
    made = []
    for _ in range(NUM_REQUESTS):
        prompt = [draw.randrange(5, 1000) for _ in range(draw.choice([2, 15, 40, 120]))]
        made.append((common + prompt if draw.random() < 0.3 else prompt, 60, draw.choice([1, 4, 20, 60])))
    return made


def serve(engine: Any, table: LatencyTable, slo: Mapping[str, float] = LOOSE, *, withdraw: bool = True) -> Any:
    """Serve all texts; every tenth is withdrawn after a while. Returns the driver, results by id, requests by id."""
    driver = PluginDriver(engine, table=table, slo=slo)
    waiting = [Ask(f"r{i}", 0.0, text) for i, text in enumerate(texts())]
    results: dict[str, Any] = {}
    ended: dict[str, Any] = {}
    steps = 0
    while waiting or driver.num_unfinished:
        for ask in waiting[:3]:
            driver.submit(ask._replace(arrival=time.time()))
        waiting = waiting[3:]
        driver.step()
        steps += 1
        if withdraw and steps % 7 == 0:
            driver.abort(f"r{steps // 7 * 10}")
        for request in driver.take_ended():
            assert request.request_id not in ended
            ended[request.request_id] = request
            results[request.request_id] = driver.take_result(request.request_id)
    return driver, results, ended


@pytest.fixture(scope="module")
def stock(load: Callable[..., Any], table: LatencyTable) -> Mapping[str, Any]:
    """What vLLM's own scheduler class gives, nobody withdrawn, with plenty of memory."""
    engine = load(None, scheduler=None)
    _, results, ended = serve(engine, table, withdraw=False)
    assert {request.outcome for request in ended.values()} == {Outcome.MET}
    assert len({tokens for tokens in results.values() if len(tokens) > 3}) > 50  # or sameness would prove nothing
    engine.engine_core.shutdown()
    return results


@pytest.fixture(scope="module")
def engine(load: Callable[..., Any]) -> Iterator[Any]:
    """An engine under the plug-in; tests set its policy."""
    engine = load("fcfs", **SMALL_MEMORY)
    yield engine
    engine.engine_core.shutdown()


@pytest.mark.parametrize("policy", ["fcfs", "neustream", "slack", "chunked"])
def test_the_tokens_are_those_of_stock_vllm(
    policy: str, stock: Mapping[str, Any], engine: Any, table: LatencyTable
) -> None:
    """200 requests with prefix hits, preemption and aborts."""
    scheduler_of(engine).step_policy = make_policy(policy, table)
    driver, results, ended = serve(engine, table)
    assert len(ended) == NUM_REQUESTS
    finished = {name: tokens for name, tokens in results.items() if tokens is not None}
    assert finished == {name: stock[name] for name in finished}
    assert len(finished) > NUM_REQUESTS * 0.8
    assert driver.scheduler.num_errors == 0
    assert driver.books.ledger.open == {}


def test_deadlines_reach_the_policy_and_rejections_the_client(engine: Any, table: LatencyTable) -> None:
    scheduler_of(engine).step_policy = make_policy("neustream", table)
    driver, results, ended = serve(engine, table, {"ttft_ms": 40, "tpot_ms": 2}, withdraw=False)
    rejected = [request for request in ended.values() if request.outcome is Outcome.REJECTED]
    assert rejected
    assert all("due in" in str(request.reason) for request in rejected)
    assert all(results[request.request_id] is None for request in rejected)
    with pytest.raises(ValueError, match="must be above 0"):
        driver.submit(Ask("bad", time.time(), ([5, 6], 4), slo={"ttft_ms": -1}))
    with pytest.raises(ValueError, match="payload"):
        driver.submit(Ask("bad", time.time(), 7))
    assert driver.num_unfinished == 0
    lengths = driver.books.history.lengths[""]
    assert lengths.quantile(0.9) <= 60
