"""The patched vLLM on its CPU engine, with a tiny OPT: tokens, time-outs, aborts, nobody lost."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.core.step_policy import StepDecision
from vllm_harness import Queue, Scripted

from neustream.driver import Ask
from neustream.tables import load_table
from vllm_patch.driver import VllmDriver
from vllm_patch.engine import warm_up

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


@pytest.mark.parametrize("bad", [{"ttft": 1}, {5: 1}, {"ttft_ms": 10**400}, 5])
def test_generate_leaves_nothing_behind_where_one_prompt_is_refused(
    engine_options: Make, table_path: str, bad: Any
) -> None:
    llm = LLM(**engine_options(step_policy=BUILD, step_policy_config={"policy": "neustream", "table": table_path}))
    with pytest.raises(ValueError, match=r"SLO|slo"):
        llm.generate(prompt_token_ids=prompts(3), sampling_params=greedy(4), slo=[LAX, LAX, bad], use_tqdm=False)
    engine = llm.llm_engine
    assert not engine.has_unfinished_requests()
    assert free_blocks(engine) == 256
    assert len(engine.scheduler[0].step_policy.policy.ledger.open) == 0
    asked = prompts(2, seed=7)
    outputs = llm.generate(prompt_token_ids=asked, sampling_params=greedy(4), slo=LAX, use_tqdm=False)
    assert [o.prompt_token_ids for o in outputs] == asked


def test_what_is_wrong_with_a_request_is_said_where_it_is_added(make_engine: Make, table_path: str) -> None:
    engine = make_engine(step_policy=BUILD, step_policy_config={"policy": "neustream", "table": table_path})
    prompt = {"prompt_token_ids": [5] * 20}
    engine.add_request("a", prompt, greedy(), slo=LAX)
    for moment in ("now", float("nan"), float("inf"), 10**400, [1.0]):
        with pytest.raises(ValueError, match="arrival_time must be a finite number"):
            engine.add_request("b", prompt, greedy(), slo=LAX, arrival_time=moment)
    for tokens in ([], [512], [-1], ["x"], 5):
        with pytest.raises(ValueError, match="one or more numbers from 0 to 511"):
            engine.add_request("b", {"prompt_token_ids": tokens}, greedy(), slo=LAX)
    with pytest.raises(ValueError, match="request id 'a' is in use"):
        engine.add_request("a", prompt, greedy(), slo=LAX)
    assert set(drain(engine)) == {"a"}
    engine.add_request("a", prompt, greedy(), slo=LAX)
    assert set(drain(engine)) == {"a"}
    assert engine.scheduler[0].step_policy.num_errors == 0


class Names(type):
    """Every attribute of the class is its own name."""

    def __getattr__(cls, name: str) -> str:
        return name


class Span(dict[str, Any]):
    """One request's span; so that `with` gives it."""

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    set_attribute = dict.__setitem__


def test_statistics_and_traces_tell_of_requests_that_were_given_up(
    make_engine: Make, table_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(step_policy=BUILD, step_policy_config={"policy": "neustream", "table": table_path})
    for name in ("SpanKind", "SpanAttributes"):
        monkeypatch.setattr(f"vllm.engine.llm_engine.{name}", Names(name, (), {}))
    spans: list[Span] = []

    def start(name: str, **options: Any) -> Span:
        spans.append(Span())
        return spans[-1]

    engine.tracer = SimpleNamespace(start_as_current_span=start)
    stats: list[Any] = []
    engine.log_stats, engine.stat_loggers = True, {"spy": SimpleNamespace(log=stats.append)}
    slo = {"ttft_ms": 1000, "tpot_ms": 1000}
    prompt = {"prompt_token_ids": [5] * 20}
    engine.add_request("late", prompt, greedy(), arrival_time=time.time() - 60, slo=slo)
    engine.add_request("fresh", prompt, greedy(3), slo={"ttft_ms": 1e5, "tpot_ms": 1e5})
    drain(engine)
    assert [reason for step in stats for reason in step.finished_reason_requests] == ["timeout", "length"]
    assert [length for step in stats for length in step.num_prompt_tokens_requests] == [20, 20]
    assert [length for step in stats for length in step.num_generation_tokens_requests] == [0, 3]
    assert len([latency for step in stats for latency in step.time_e2e_requests]) == 1
    late, fresh = spans
    assert (late["LLM_REQUEST_ID"], late["LLM_USAGE_COMPLETION_TOKENS"]) == ("late", 0)
    assert late["LLM_LATENCY_E2E"] > 59
    assert set(fresh) - set(late) == {"LLM_LATENCY_TIME_IN_QUEUE", "LLM_LATENCY_TIME_TO_FIRST_TOKEN"}


@pytest.mark.parametrize("policy", ["neustream", None])
def test_the_driver_serves_on_the_real_engine(make_engine: Make, table_path: str, policy: str | None) -> None:
    """With a policy and as stock vLLM; the driver's deadlines and the policy's agree, or `step` would raise."""
    told = {"step_policy": BUILD, "step_policy_config": {"policy": policy, "table": table_path}} if policy else {}
    engine = make_engine(**told, num_gpu_blocks_override=18)
    warm_up(engine, [5] * 20)
    table = load_table(table_path)
    driver = VllmDriver(engine, table=table, slo={"pslo": 1e6, "dslo": 1e6})
    now = time.time()
    for i, prompt in enumerate(prompts(12)):
        slo = {"pslo": 2, "dslo": 2} if i % 4 == 3 else None
        driver.submit(Ask(str(i), now - 60 if slo else now, (prompt, 12), slo))
    with pytest.raises(ValueError, match="in use"):
        driver.submit(Ask("0", now, ([5], 3)))
    records = []
    while driver.num_unfinished:
        record = driver.step()
        assert record is not None
        records.append(record)
    ended = driver.take_ended()
    late = {str(i) for i in range(3, 12, 4)}
    outcomes = {request.request_id: str(request.outcome) for request in ended}
    hopeless = "rejected" if policy else "late"
    assert outcomes == {str(i): hopeless if str(i) in late else "met" for i in range(12)}
    assert {request.units for request in ended if request.outcome != "rejected"} == {12}
    assert sum(record.extra["num_preempted"] for record in records) > 0
    assert sum(len(record.request_ids) for record in records) == sum(request.units for request in ended)
    assert {name for record in records for name in record.rejected} == (late if policy else set())
    for record in records:
        assert record.kind == "idle" or (record.predicted_seconds or 0) > 0
        assert 0 <= record.decision_seconds <= record.schedule_seconds <= record.seconds
    again = [record for record in records if record.kind == "prefill"]
    assert sum(len(record.request_ids) for record in again) > 12 - len(late if policy else set())
    assert free_blocks(engine) == 18


def test_a_drivers_history_knows_nothing_of_warming_up(make_engine: Make, table_path: str) -> None:
    config = {"policy": "neustream", "table": table_path, "slo": LAX}
    engine = make_engine(step_policy=BUILD, step_policy_config=config)
    adapter = engine.scheduler[0].step_policy.policy
    warm_up(engine, [5] * 20)
    assert adapter.history.drift
    driver = VllmDriver(engine, slo=LAX)
    assert (dict(adapter.history.drift), adapter.history.last_seconds, adapter.history.lengths) == ({}, {}, {})
    driver.submit(Ask("a", time.time(), ([5] * 20, 4)))
    while driver.num_unfinished:
        driver.step()
    assert adapter.history.drift
    VllmDriver(engine, slo=LAX)
    assert not adapter.history.drift


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
