"""The LLM bench on a fake engine: N requests in, N accounted for, with a policy and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from exp_fakes import send_signal
from fake_vllm import TABLE, FakeVllm

from exp.harness.folder import create_run_folder
from exp.harness.report import goodput_columns
from exp.harness.runner import run_settings
from exp.harness.settings import Setting, sweep
from exp.llm import engine_v0
from exp.llm.bench import LlmBench
from exp.llm.prompts import Prompts
from vllm_patch.driver import VllmDriver

AXES = {"rate": (400.0,), "cv": (1.0,), "pslo": (3.0,), "dslo": (1.5,)}
HEADER = {"policy": "neustream", "model": "opt-125m", "taken_at": "engine"}


class FakedBench(LlmBench):
    """The bench, but for vLLM's own sampling parameters."""

    def driver(self, setting: Setting) -> VllmDriver:
        driver = super().driver(setting)
        assert isinstance(driver, VllmDriver)
        driver.params = lambda max_tokens: max_tokens
        return driver


def bench(engine: FakeVllm, num_requests: int = 20) -> FakedBench:
    return FakedBench(engine_v0, engine, TABLE, Prompts(1000), num_requests=num_requests, max_tokens=4)


def run(faked: FakedBench, tmp_path: Path) -> tuple[int, Any, list[Any]]:
    settings = sweep(AXES)
    with create_run_folder(str(tmp_path / "run"), "p", "m") as folder:
        columns = goodput_columns(list(AXES))
        code = run_settings(faked, settings, folder, HEADER, best_by="token_goodput", columns=columns)
    ended = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    return code, json.loads((tmp_path / "run" / "summary.json").read_text())["settings"][0], ended


def test_two_hundred_in_two_hundred_accounted_for(tmp_path: Path) -> None:
    engine = FakeVllm(reject={"0-3", "0-7"}, seconds=0.0)
    code, row, ended = run(bench(engine, num_requests=200), tmp_path)
    assert code == 0
    assert sorted(line["id"] for line in ended) == sorted(f"0-{i}" for i in range(200))
    assert [line["id"] for line in ended if line["outcome"] == "rejected"] == ["0-3", "0-7"]
    assert row["requests"] == 200
    assert row["units"] == 198 * 4
    assert engine.live == {}


def test_a_policys_engine_gets_the_slo_and_stock_vllm_does_not(tmp_path: Path) -> None:
    for policy, slo in (("neustream", {"pslo": 3.0, "dslo": 1.5, "on_miss": "reject"}), ("vllm", None)):
        engine = FakeVllm(has_policy=slo is not None)
        _, row, _ = run(bench(engine, num_requests=3), tmp_path / policy)
        assert [options.get("slo") for options in engine.added.values()] == [slo] * 3
        assert row["good"] == 3


def test_every_policy_is_sent_the_same_requests() -> None:
    setting = sweep(AXES)[0]
    asks = bench(FakeVllm()).asks(setting)
    assert asks == bench(FakeVllm(has_policy=False)).asks(setting)
    assert [ask.arrival for ask in asks] == sorted(ask.arrival for ask in asks)
    assert asks != bench(FakeVllm()).asks(sweep(AXES, seed=1)[0])


def test_arrivals_are_scaled_by_the_rate_and_prompts_are_the_same() -> None:
    slow, fast = sweep({**AXES, "rate": (1.0, 2.0)})
    pairs = list(zip(bench(FakeVllm()).asks(slow), bench(FakeVllm()).asks(fast), strict=True))
    assert [one.payload for one, _ in pairs] == [other.payload for _, other in pairs]
    assert [one.arrival for one, _ in pairs] == pytest.approx([2 * other.arrival for _, other in pairs])


def test_an_interrupt_frees_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeVllm()
    original = engine.step

    def step() -> list[Any]:
        if len(engine.added) > 5:
            send_signal()
        return original()

    monkeypatch.setattr(engine, "step", step)
    code, row, ended = run(bench(engine, num_requests=100), tmp_path)
    assert code == 130
    assert len(engine.added) < 100
    assert engine.live == {}
    assert sorted(line["id"] for line in ended) == sorted(engine.added)
    assert [line["id"] for line in ended if line["outcome"] == "aborted"] == engine.aborted
    assert row["complete"] is False


def test_the_policys_time_is_told_from_the_schedulers(tmp_path: Path) -> None:
    _, row, _ = run(bench(FakeVllm()), tmp_path)
    assert row["schedule_share"] == pytest.approx(row["scheduler_share"] / 10)


def test_each_setting_begins_with_a_new_history(tmp_path: Path) -> None:
    engine = FakeVllm()
    settings = sweep({**AXES, "rate": (400.0, 500.0, 600.0)})
    with create_run_folder(str(tmp_path / "run"), "p", "m") as folder:
        columns = goodput_columns(list(AXES))
        run_settings(bench(engine, num_requests=3), settings, folder, HEADER, best_by="token_goodput", columns=columns)
    assert engine.scheduler[0].step_policy.resets == 3


def test_outputs_of_hidden_lengths_end_early_and_the_policy_is_told_their_maximum(tmp_path: Path) -> None:
    engine = FakeVllm(seconds=0.0, has_policy=True)
    faked = FakedBench(engine_v0, engine, TABLE, Prompts(1000), num_requests=60, max_tokens=9, mean_output=4.0)
    setting = sweep(AXES)[0]
    ends = [ask.payload[2] for ask in faked.asks(setting)]
    assert ends == [ask.payload[2] for ask in faked.asks(setting)]
    assert 1 <= min(ends) < 4 < max(ends) <= 9
    code, row, ended = run(faked, tmp_path)
    assert code == 0
    assert (row["requests"], row["failed"]) == (60, 0)
    assert row["units"] == sum(ends)
    for line in ended:
        i = int(line["id"].partition("-")[2])
        assert (line["units"], line["visits"]) == (ends[i], {"prefill": 1, "decode": 8})
        told = engine.added[line["id"]]["slo"]
        assert told.get("max_tokens", 9) == 9
        assert ("max_tokens" in told) == (ends[i] < 9)
