"""The whole program on the real engine, with a model of two narrow layers: with a policy, and as stock vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import TABLE

from neustream.catalog.llms import OptShape
from neustream.tables import LatencyTable, save_table

pytest.importorskip("vllm")

ROOT = Path(__file__).resolve().parents[2]
NUM_REQUESTS, MAX_TOKENS = 6, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, and a table of it beside it."""
    folder = tmp_path_factory.mktemp("models") / "opt-tiny"
    folder.mkdir()
    shape = OptShape("opt-tiny", num_layers=2, hidden=128, num_heads=2, ffn=256, embed=128)
    (folder / "config.json").write_text(json.dumps(shape.config() | {"vocab_size": 512}))
    save_table(LatencyTable("opt-tiny", "desk", TABLE.modules, TABLE.info), folder.parent / "table.json")
    return folder


def run(model: Path, folder: Path, *flags: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Run the program; returns its summary, requests and steps."""
    common = f"--requests {NUM_REQUESTS} --max-tokens {MAX_TOKENS} --device cpu --quick --model {model}"
    command = [sys.executable, "-m", "exp.llm", *common.split(), *flags]
    command += ["--table", str(model.parent / "table.json"), "--out", str(folder)]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "times taken at the engine" in result.stdout
    summary = json.loads((folder / "summary.json").read_text())
    requests, steps = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("requests.jsonl", "steps.jsonl")
    )
    return summary, requests, steps


@pytest.mark.parametrize("policy", ["neustream", "slack", "vllm"])
def test_serves_measures_and_records(policy: str, model: Path, tmp_path: Path) -> None:
    """With deadlines that nobody can miss, everybody meets them, and every token is in a step's record."""
    lax = ("--pslo", "10000", "--dslo", "10000")
    summary, requests, steps = run(model, tmp_path / "run", "--policy", policy, "--rate", "20,40", *lax)
    assert (summary["policy"], summary["complete"], len(summary["settings"])) == (policy, True, 2)
    assert [row["good"] for row in summary["settings"]] == [NUM_REQUESTS] * 2
    ids = sorted((line["setting"], line["id"]) for line in requests)
    assert ids == [(s, f"{s}-{i}") for s in (0, 1) for i in range(NUM_REQUESTS)]
    assert {(line["outcome"], line["units"], line["units_on_time"]) for line in requests} == {
        ("met", MAX_TOKENS, MAX_TOKENS)
    }
    for setting in (0, 1):
        mine = [step for step in steps if step["setting"] == setting]
        assert {step["module"] for step in mine} == {"prefill", "decode"}
        assert sum(step["batch_size"] for step in mine) == NUM_REQUESTS * MAX_TOKENS
        prefilled = [name for step in mine if step["module"] == "prefill" for name in step["request_ids"]]
        assert sorted(prefilled) == sorted(f"{setting}-{i}" for i in range(NUM_REQUESTS))
        assert all(step["predicted_seconds"] > 0 for step in mine)
    assert all(0 <= step["decision_seconds"] <= step["schedule_seconds"] <= step["seconds"] for step in steps)
    assert not any("error" in step for step in steps)


def test_what_cannot_be_in_time_is_rejected_and_recorded(model: Path, tmp_path: Path) -> None:
    hopeless = ("--goodput", "ttft:0.001", "tpot:0.001")
    _, requests, steps = run(model, tmp_path / "run", "--policy", "neustream", "--rate", "40", *hopeless)
    assert {(line["outcome"], line["units"]) for line in requests} == {("rejected", 0)}
    assert all(line["reason"] for line in requests)
    assert sorted(name for step in steps for name in step["rejected"]) == sorted(line["id"] for line in requests)
    assert {(step["module"], step["batch_size"]) for step in steps} == {("idle", 0)}
