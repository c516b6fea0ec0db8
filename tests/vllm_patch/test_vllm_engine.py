"""The patched vLLM on its CPU engine, with a tiny OPT: tokens, time-outs, aborts, nobody lost."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.core.step_policy import StepDecision
from vllm_harness import Queue, Scripted

BUILD = "vllm_patch.factory:build"
LAX = {"ttft_ms": 1e6, "tpot_ms": 1e6}
Make = Callable[..., Any]


def greedy(max_tokens: int = 12, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **more)


def prompts(number: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 512) for _ in range(rng.randint(3, longest))] for _ in range(number)]


def drain(engine: Any, most: int = 5000) -> dict[str, Any]:
    """Step to the end; every request must come out finished exactly once."""
    outputs: dict[str, Any] = {}
    for _ in range(most):
        if not engine.has_unfinished_requests():
            return outputs
        for output in engine.step():
            if output.finished:
                assert output.request_id not in outputs
                outputs[output.request_id] = output
    raise AssertionError(f"not done after {most} steps")


def tokens(outputs: dict[str, Any]) -> dict[str, list[tuple[int, ...]]]:
    return {name: [sequence.token_ids for sequence in output.outputs] for name, output in outputs.items()}


def free_blocks(engine: Any) -> int:
    return int(engine.scheduler[0].block_manager.get_num_free_gpu_blocks())


def few_at_a_time(waiting: Queue, running: Queue, swapped: Queue) -> StepDecision:
    """The last two that wait, and half of those that run: an order that no default would choose."""
    return StepDecision(list(waiting)[::-1][:2] if len(running) < 9 else [], list(running)[::2])


@pytest.mark.parametrize("sampling", [{}, {"n": 2, "use_beam_search": True}])
def test_the_same_tokens_come_out_with_a_policy_and_without(
    make_engine: Make, table_path: str, sampling: dict[str, Any]
) -> None:
    core = {"table": table_path, "slo": LAX}
    variants: list[dict[str, Any]] = [
        {},
        {"step_policy": BUILD, "step_policy_config": {"policy": "fcfs", **core}},
        {"step_policy": BUILD, "step_policy_config": {"policy": "neustream", **core}},
        {"step_policy": "vllm_harness:build", "step_policy_config": {"policy": Scripted(few_at_a_time)}},
    ]
    results = []
    for variant in variants:
        engine = make_engine(**variant, num_gpu_blocks_override=200 if sampling else 18)
        for i, prompt in enumerate(prompts(10)):
            engine.add_request(str(i), {"prompt_token_ids": prompt}, greedy(**sampling))
            engine.step()
        outputs = drain(engine)
        assert {o.outputs[0].finish_reason for o in outputs.values()} == {"length"}
        results.append(tokens(outputs))
        scheduler = engine.scheduler[0]
        assert (scheduler.num_cumulative_preemption > 0) == (not sampling)
        if variant:
            assert scheduler.step_policy.num_errors == 0
        assert free_blocks(engine) == (200 if sampling else 18)
    assert len(results[0]) == 10
    assert len({sequences[0] for sequences in results[0].values()}) == 10  # the weights tell prompts apart
    assert all(result == results[0] for result in results[1:])


def test_a_request_that_cannot_make_it_times_out_at_once_and_frees_its_blocks(
    make_engine: Make, table_path: str
) -> None:
    import time

    engine = make_engine(step_policy=BUILD, step_policy_config={"policy": "neustream", "table": table_path})
    slo = {"ttft_ms": 1000, "tpot_ms": 1000}
    engine.add_request("late", {"prompt_token_ids": [5] * 20}, greedy(), arrival_time=time.time() - 60, slo=slo)
    (output,) = engine.step()
    assert output.finished
    assert (output.outputs[0].finish_reason, output.slo) == ("timeout", slo)
    assert not engine.has_unfinished_requests()
    engine.add_request("late", {"prompt_token_ids": [5] * 20}, greedy(), arrival_time=time.time() - 60, slo=slo)
    engine.add_request("fresh", {"prompt_token_ids": [5] * 20}, greedy(), slo={"ttft_ms": 1e5, "tpot_ms": 1e5})
    first = {o.request_id: o.outputs[0].finish_reason for o in engine.step()}
    assert first == {"late": "timeout", "fresh": None}
    fresh = drain(engine)["fresh"]
    assert len(fresh.metrics.token_times) == len(fresh.metrics.deadlines) == 12
    assert fresh.metrics.arrival_time < fresh.metrics.first_scheduled_time < fresh.metrics.token_times[0]
    assert free_blocks(engine) == 256


def test_abort_in_mid_run_frees_the_blocks(make_engine: Make, table_path: str) -> None:
    config = {"policy": "neustream", "table": table_path, "slo": LAX}
    engine = make_engine(step_policy=BUILD, step_policy_config=config)
    for name in "abcd":
        engine.add_request(name, {"prompt_token_ids": [ord(name)] * 20}, greedy(30))
    for _ in range(5):
        engine.step()
    held = 256 - free_blocks(engine)
    engine.abort_request(["a", "b"])
    assert 256 - free_blocks(engine) == held // 2
    assert set(drain(engine)) == {"c", "d"}
    assert free_blocks(engine) == 256
    assert len(engine.scheduler[0].step_policy.policy.streams) == 0


def test_200_requests_in_200_accounted_for(make_engine: Make, table_path: str) -> None:
    """Under blocks and deadlines that are both too tight, with aborts, wide requests and demotion in between."""
    config = {"policy": "neustream", "table": table_path}
    engine = make_engine(step_policy=BUILD, step_policy_config=config, num_gpu_blocks_override=40)
    ended: list[Any] = []
    engine.scheduler[0].step_policy.policy.on_end = ended.append
    rng = random.Random(1)
    outputs: dict[str, Any] = {}
    aborted = set()
    for i, prompt in enumerate(prompts(200, seed=1)):
        slo: dict[str, Any] = {"ttft_ms": rng.choice([5, 60, 1e6]), "tpot_ms": 0.01}
        slo["on_miss"] = rng.choice(["reject", "reject", "demote"])
        engine.add_request(str(i), {"prompt_token_ids": prompt}, greedy(rng.randint(1, 12)), slo=slo)
        if i % 3 == 0:
            outputs |= {output.request_id: output for output in engine.step() if output.finished}
        if i % 20 == 19 and str(i - 5) not in outputs:
            engine.abort_request(str(i - 5))
            aborted.add(str(i - 5))
    outputs |= drain(engine)
    assert aborted
    assert set(outputs).isdisjoint(aborted)
    assert set(outputs) | aborted == {str(i) for i in range(200)}
    reasons = [output.outputs[0].finish_reason for output in outputs.values()]
    assert set(reasons) == {"length", "timeout"}
    outcomes = [str(request.outcome) for request in ended]
    assert len({request.request_id for request in ended}) == len(ended) == 200
    assert outcomes.count("rejected") == reasons.count("timeout")
    assert outcomes.count("met") + outcomes.count("late") == reasons.count("length")
    assert outcomes.count("aborted") == len(aborted)
    assert engine.scheduler[0].step_policy.num_errors == 0
    assert free_blocks(engine) == 40


def test_generate_takes_one_slo_for_all_or_one_for_each(engine_options: Make, table_path: str) -> None:
    llm = LLM(**engine_options(step_policy=BUILD, step_policy_config={"policy": "neustream", "table": table_path}))
    hopeless = {"ttft_ms": 0.001, "tpot_ms": 1}
    outputs = llm.generate(
        prompt_token_ids=prompts(3), sampling_params=greedy(4), slo=[LAX, hopeless, None], use_tqdm=False
    )
    assert [o.outputs[0].finish_reason for o in outputs] == ["length", "timeout", "length"]
    assert [o.slo for o in outputs] == [LAX, hopeless, None]
    assert [len(o.metrics.deadlines or ()) for o in outputs] == [4, 1, 0]
    outputs = llm.generate(prompt_token_ids=prompts(2), sampling_params=greedy(4), slo=LAX, use_tqdm=False)
    assert [o.slo for o in outputs] == [LAX, LAX]
    with pytest.raises(ValueError, match="lengths of prompts and slo"):
        llm.generate(prompt_token_ids=prompts(2), sampling_params=greedy(4), slo=[LAX], use_tqdm=False)
    with pytest.raises(ValueError, match="SLO keys"):
        llm.generate(prompt_token_ids=prompts(1), sampling_params=greedy(4), slo={"ttft": 1}, use_tqdm=False)


def test_an_engine_whose_policy_breaks_serves_on(make_engine: Make) -> None:
    def broken(waiting: Queue, running: Queue, swapped: Queue) -> StepDecision:
        raise RuntimeError("out of ideas")

    policy = Scripted(broken)
    engine = make_engine(step_policy="vllm_harness:build", step_policy_config={"policy": policy})
    engine.add_request("a", {"prompt_token_ids": [7, 8, 9]}, greedy(5))
    assert len(drain(engine)["a"].outputs[0].token_ids) == 5
    assert {record.error for record in policy.steps} == {"RuntimeError: out of ideas"}


WITHOUT_OUTLINES = """
import sys
sys.modules["outlines"] = sys.modules["pyairports"] = None
import vllm, vllm.entrypoints.openai.api_server
from vllm.model_executor.guided_decoding import get_local_guided_decoding_logits_processor as guided
from vllm.model_executor.guided_decoding.guided_fields import GuidedDecodingRequest
assert guided("outlines", GuidedDecodingRequest(), None) is None
try:
    guided("outlines", GuidedDecodingRequest(guided_regex="a+"), None)
except ValueError as error:
    print(error)
"""


def test_vllm_and_its_server_import_without_outlines_and_say_so_when_it_is_asked_for() -> None:
    result = subprocess.run([sys.executable, "-c", WITHOUT_OUTLINES], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "Guided decoding needs the package 'outlines'" in result.stdout.splitlines()[-1]
