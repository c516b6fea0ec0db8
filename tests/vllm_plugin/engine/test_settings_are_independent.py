"""Settings of one run on today's vLLM do not find each other's prompts in the prefix cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exp.llm import engine_v1
from neustream.tables import LatencyTable


def test_a_new_setting_begins_with_an_empty_prefix_cache(load: Callable[..., Any], table: LatencyTable):
    from vllm import SamplingParams

    engine = load(None, scheduler=None)

    def num_cached(name: str) -> int:
        engine.add_request(name, {"prompt_token_ids": [7 + i % 40 for i in range(512)]}, SamplingParams(max_tokens=2))
        last = None
        while engine.has_unfinished_requests():
            for output in engine.step():
                last = output
        assert last is not None
        return int(last.num_cached_tokens)

    assert num_cached("first") == 0
    assert num_cached("again") > 0
    engine_v1.driver(engine, table, {"ttft_ms": 1000.0})
    assert num_cached("after") == 0
