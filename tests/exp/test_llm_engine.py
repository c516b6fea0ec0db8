"""The whole program on the real engine, with a model of two narrow layers: with a policy, and as stock vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("policy", ["neustream", "slack", "vllm"])
def test_serves_measures_and_prints(policy: str, model: Path, tmp_path: Path) -> None:
    """The SLO is so lax that every policy must serve every request to its last token, however slow the machine is."""
    flags = f"--policy {policy} --rate 20,40 --requests {NUM_REQUESTS} --max-tokens {MAX_TOKENS} --device cpu --quick"
    flags += " --pslo 10000 --dslo 10000"
    command = [sys.executable, "-m", "exp.llm", *flags.split(), "--model", str(model)]
    command += ["--table", str(model.parent / "table.json"), "--out", str(tmp_path / "run")]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "times taken at the engine" in result.stdout

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["policy"], summary["complete"], len(summary["settings"])) == (policy, True, 2)
    requests = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    ids = sorted((line["setting"], line["id"]) for line in requests)
    assert ids == [(s, f"{s}-{i}") for s in (0, 1) for i in range(NUM_REQUESTS)]
    assert [(line["outcome"], line["units"]) for line in requests] == [("met", MAX_TOKENS)] * 2 * NUM_REQUESTS

    steps = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    tokens = sum(step["batch_size"] for step in steps if step["module"] in ("prefill", "decode"))
    assert tokens == sum(row["units"] for row in summary["settings"]) == 2 * NUM_REQUESTS * MAX_TOKENS
    assert {step["module"] for step in steps} >= {"prefill", "decode"}
    assert all(step["predicted_seconds"] > 0 for step in steps if step["module"] != "idle")
    assert not any("error" in step for step in steps)
