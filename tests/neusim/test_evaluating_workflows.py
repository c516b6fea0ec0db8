"""The comparison of workflow rules: its rows, what it keeps, the artifact's own rule, what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from neusim.evaluating import workflows
from neusim.evaluating.artifact_llm import ArtifactLlm
from neusim.evaluating.workflow_grid import parse_rule
from neusim.evaluating.workflow_report import ratios
from neustream import LatencyTable
from neustream.latency import ContextLatency, TokensLatency
from neustream.plan import Limits
from neustream.request import Request
from neustream.route import DECODE, PREFILL, llm_route
from neustream.slo import Deadlines
from neustream.streams import Streams

TABLE = {
    "prefill_tokens": [32, 4096], "prefill_seconds": [0.01, 0.3], "kv_blocks": 1000,
    "prefill_fit": {"c0": 0.01, "per_token": 7e-5, "per_token_squared": 0.0},
    "decode_fit": {"c0": 0.015, "per_context_token": 7e-7},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    requests = [
        {"expert_chars": 900, "simple_chars": 80, "codellama_1_output_tokens": 40 + i, "llava_output_tokens": 50}
        for i in range(8)
    ]
    chars = {"codellama_1": 400, "llava": 800, "codellama_2": 600}
    (tmp_path / "agents_tables.json").write_text(json.dumps({"codellama": TABLE, "llava": TABLE}))
    (tmp_path / "agents_trace.json").write_text(json.dumps({"template_chars": chars, "requests": requests}))
    return tmp_path


def run(folder: Path, *more: str) -> int:
    return workflows.main(["--tables", str(folder), "--setting", "2/1/1.8", "--processes", "1", *more])


def test_every_rule_runs_on_every_seed_and_an_interruption_loses_nothing(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.csv"
    asked = ("--seed", "artifact,5", "--csv", str(out))
    whole = workflows.WorkflowGrid.row
    done = []

    def interrupted(self, task):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(task)
        return whole(self, task)

    monkeypatch.setattr(workflows.WorkflowGrid, "row", interrupted)
    assert run(folder, *asked) == 130
    assert not out.exists()
    monkeypatch.setattr(workflows.WorkflowGrid, "row", lambda self, task: done.append(task) or whole(self, task))
    assert run(folder, *asked, "--resume") == 0
    assert len(done) == len(set(done)) == 2 * len(workflows.RULES)
    rows = list(csv.DictReader(out.open()))
    assert {(row["rule"], row["seed"]) for row in rows} == {(r, s) for r in workflows.RULES for s in ("artifact", "5")}
    assert all(0 <= int(row["stages_in_time"]) <= int(row["good"]) <= 8 for row in rows)
    assert any(int(row["good"]) > 0 for row in rows)
    printed = capsys.readouterr().out
    assert f"{workflows.RULES[0]} over the others" in printed
    assert "tokens look" in printed


def test_ratios_are_of_the_sums_and_the_least_setting_is_named():
    rows = [
        {"rule": rule, "seed": seed, "rate": rate, "cv": 1.0, "slo_scale": 1.8, "good": good}
        for seed in ("1", "2")
        for rule, rate, good in (("a", 0.6, 30), ("a", 1.0, 15), ("b", 0.6, 20), ("b", 1.0, 20))
    ]
    shown = ratios(rows, "a")
    assert "1.125 (1.125 … 1.125)" in shown
    assert "0.750 at 1/1/1.8" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rule", "carry:neustream"), "a rule is BUDGET:POLICY:BINDING:POOLING"),
        (("--rule", "carry:neustream:later:pooled"), "'later' is none of late, roundrobin"),
        (("--rule", "half:neustream:late:pooled"), "unknown budget rule 'half'"),
        (("--setting", "0.7/1"), "a setting is RATE/CV/SCALE"),
        (("--seed", "one"), "--seed takes whole numbers and artifact"),
        (("--ours", "carry:fcfs:late:pooled"), "is none of --rule"),
        (("--resume",), "--resume needs --csv FILE"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, arguments, says):
    with pytest.raises(SystemExit) as caught:
        run(folder, *arguments)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
    assert str(parse_rule("carry:artifact:late:pooled")) == "carry:artifact:late:pooled"


def test_the_artifacts_rule_prefills_what_leaves_the_next_tokens_in_time():
    """Alone a prefill of 10 takes 0.1 s; a decode step takes 0.1 s. With a scale of 2 the credit is 0.16 s."""
    table = LatencyTable("m", "d", {PREFILL: TokensLatency((0.0, 0.01, 0.0)), DECODE: ContextLatency((0.1, 0.0))})
    policy, limits = ArtifactLlm(table), Limits(4, free_blocks=100, total_blocks=100)

    def plan(running_due: float, first_due: float):
        streams = Streams((PREFILL, DECODE))
        runs = Request("runs", 0.0, Deadlines(running_due - 0.2, 0.2), llm_route(20), 10)
        runs.advance(0.05)
        streams.add(runs)
        streams.add(Request("waits", 0.0, Deadlines(first_due, 0.2), llm_route(20), 10))
        return policy.plan(0.1, streams, limits)

    assert plan(0.31, 0.3).module == PREFILL
    assert plan(0.29, 0.3).module == DECODE
    given_up = plan(0.31, 0.03)
    assert (given_up.module, [r.request.request_id for r in given_up.rejected]) == (DECODE, ["waits"])
    assert plan(0.31, 0.15).module == PREFILL
