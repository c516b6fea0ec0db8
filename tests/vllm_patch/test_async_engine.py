"""The SLO's way through AsyncLLMEngine and its RPC client, with time-outs and aborts on it."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from vllm.entrypoints.openai.rpc.client import AsyncEngineRPCClient
from vllm.entrypoints.openai.rpc.server import AsyncEngineRPCServer
from vllm.executor import multiproc_worker_utils
from vllm.usage.usage_lib import UsageContext

SLO = {"ttft_ms": 60_000, "tpot_ms": 100}
PROMPT = {"prompt_token_ids": [5, 6, 7, 8]}


@pytest.fixture
def arguments(
    engine_options: Callable[..., dict[str, Any]], table_path: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncEngineArgs:
    # The worker is a process of its own, and a fork of one that has run OpenMP threads may hang.
    monkeypatch.setattr(multiproc_worker_utils, "mp", multiprocessing.get_context("spawn"))
    config = {"policy": "neustream", "table": table_path}
    options = engine_options(step_policy="vllm_patch.factory:build", step_policy_config=config)
    return AsyncEngineArgs(**options, disable_log_requests=True)


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


async def last(outputs: AsyncIterator[Any]) -> Any:
    """The last output of a request; all before it must be unfinished."""
    *before, final = [output async for output in outputs]
    assert final.finished
    assert not any(output.finished for output in before)
    return final


async def stop(engine: AsyncLLMEngine) -> None:
    assert engine._background_loop_unshielded is not None
    engine._background_loop_unshielded.cancel()
    await asyncio.gather(engine._background_loop_unshielded, return_exceptions=True)
    engine.engine.model_executor.shutdown()


BAD: dict[str, dict[str, Any]] = {
    "no mapping": {"slo": 5},
    "no key": {"slo": {5: 1}},
    "huge": {"slo": {"ttft_ms": 10**400}},
    "no number": {"slo": {"ttft_ms": "soon"}},
    "no choice": {"slo": {**SLO, "on_miss": ["reject"]}},
    "no time": {"arrival_time": "now"},
    "never": {"arrival_time": float("inf")},
    "no tokens": {"inputs": {"prompt_token_ids": ["x"]}},
    "empty": {"inputs": {"prompt_token_ids": []}},
    "unknown token": {"inputs": {"prompt_token_ids": [5, 512]}},
    "negative token": {"inputs": {"prompt_token_ids": [5, -1]}},
}


async def refuse(engine: AsyncLLMEngine) -> None:
    """Bad requests among good ones: each is refused to its client, and the others hear nothing of it."""
    good = [asyncio.create_task(last(engine.generate(PROMPT, greedy(20), f"good {i}", slo=SLO))) for i in range(3)]
    bad = {}
    for name, wrong in BAD.items():
        asked: dict[str, Any] = {"inputs": PROMPT, "slo": SLO, **wrong}
        bad[name] = asyncio.create_task(last(engine.generate(asked.pop("inputs"), greedy(6), name, **asked)))
        await asyncio.sleep(0.01)
    twice = [asyncio.create_task(last(engine.generate(PROMPT, greedy(6), "twice", slo=SLO))) for _ in range(2)]
    results = await asyncio.wait_for(asyncio.gather(*bad.values(), return_exceptions=True), 30)
    for name, result in zip(bad, results, strict=True):
        assert isinstance(result, ValueError | TypeError), (name, result)
        assert not isinstance(result, ValueError) or "\n" not in str(result)
    first, second = await asyncio.wait_for(asyncio.gather(*twice, return_exceptions=True), 30)
    assert isinstance(second, KeyError)
    assert first.outputs[0].finish_reason == "length"
    assert [(await task).outputs[0].finish_reason for task in good] == ["length"] * 3
    assert not engine.errored


async def serve(engine: AsyncLLMEngine) -> None:
    long_ago = time.time() - 120
    fresh, late, free = await asyncio.gather(
        last(engine.generate(PROMPT, greedy(6), "fresh", slo=SLO)),
        last(engine.generate(PROMPT, greedy(6), "late", slo=SLO, arrival_time=long_ago)),
        last(engine.generate(PROMPT, greedy(6), "free")),
    )
    assert [o.outputs[0].finish_reason for o in (fresh, late, free)] == ["length", "timeout", "length"]
    assert (fresh.slo, late.slo, free.slo) == (SLO, SLO, None)
    assert late.metrics.arrival_time == long_ago
    assert len(fresh.metrics.token_times) == len(fresh.metrics.deadlines) == 6

    # Rejected while nothing else is there: the caller hears of it, and the loop goes back to sleep.
    alone = await asyncio.wait_for(last(engine.generate(PROMPT, greedy(6), "alone", slo=SLO, arrival_time=0.0)), 10)
    assert alone.outputs[0].finish_reason == "timeout"

    with pytest.raises(ValueError, match="SLO keys"):
        await last(engine.generate(PROMPT, greedy(6), "bad", slo={"speed": 9}))

    await refuse(engine)

    outputs = engine.generate(PROMPT, greedy(200), "aborted", slo=SLO)
    await anext(outputs)
    await engine.abort("aborted")
    after = await last(engine.generate(PROMPT, greedy(3), "after", slo=SLO))
    assert after.outputs[0].token_ids == fresh.outputs[0].token_ids[:3]
    scheduler = engine.engine.scheduler[0]
    assert not scheduler.has_unfinished_seqs()
    assert scheduler.block_manager.get_num_free_gpu_blocks() == 256
    assert len(scheduler.step_policy.policy.streams) == 0
    assert scheduler.step_policy.num_errors == 0
    await stop(engine)


def test_async_engine_serves_rejects_refuses_and_aborts(arguments: AsyncEngineArgs) -> None:
    asyncio.run(serve(AsyncLLMEngine.from_engine_args(arguments)))


async def serve_over_rpc(arguments: AsyncEngineArgs) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = AsyncEngineRPCServer(arguments, UsageContext.UNKNOWN_CONTEXT, port)
    loop = asyncio.create_task(server.run_server_loop())
    client = AsyncEngineRPCClient(port)
    try:
        await client.wait_for_server()
        long_ago = time.time() - 120
        fresh, late = await asyncio.gather(
            last(client.generate(PROMPT, greedy(4), "fresh", slo=SLO)),
            last(client.generate(PROMPT, greedy(4), "late", slo=SLO, arrival_time=long_ago)),
        )
        assert [o.outputs[0].finish_reason for o in (fresh, late)] == ["length", "timeout"]
        assert (fresh.slo, late.slo) == (SLO, SLO)
        assert late.metrics.arrival_time == long_ago
        assert len(fresh.metrics.token_times) == 4
        with pytest.raises(ValueError, match="SLO keys"):
            await last(client.generate(PROMPT, greedy(4), "bad", slo={5: 1}))
        after = await last(client.generate(PROMPT, greedy(4), "after", slo=SLO))
        assert after.outputs[0].token_ids == fresh.outputs[0].token_ids
    finally:
        loop.cancel()
        await stop(server.engine)
        client.close()
        server.cleanup()


def test_slo_and_arrival_time_go_over_rpc(arguments: AsyncEngineArgs) -> None:
    asyncio.run(asyncio.wait_for(serve_over_rpc(arguments), 60))
