"""Two runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exp.compare import compare, main, match, read_summary
from exp.harness.frames import rows_of
from neustream.cli.arguments import BadInput


def summary(policy: str, goodput: float, **changes: Any) -> dict[str, Any]:
    row = {"rate": 2.0, "cv": 1.0, "seed": 0, "load": 1.4, "token_goodput": goodput, "request_goodput": goodput / 10}
    row |= {"slo_attainment": 0.5, "reject_rate": 0.25}
    run = {"model": "opt-125m", "policy": policy, "device": "desk", "axes": ["rate", "cv"], "complete": True}
    return run | {"settings": [row]} | changes


def test_prints_the_factor_of_each_setting() -> None:
    text = compare(summary("neustream", 30.0), summary("vllm", 20.0)).splitlines()
    assert text[:2] == ["a: opt-125m, policy neustream, desk", "b: opt-125m, policy vllm, desk"]
    assert " ".join(text[-1].split()) == "2 1 1.4 0 30.00 20.00 1.50 3.000 2.000 1.50 50.0% 50.0% 25.0% 25.0%"


def test_no_factor_where_the_other_run_has_nothing() -> None:
    (row,) = rows_of(match(summary("a", 30.0), summary("b", 0.0)))
    assert row["token_goodput_ratio"] is None
    assert "30.00 0.000 - " in " ".join(compare(summary("a", 30.0), summary("b", 0.0)).split())


@pytest.mark.parametrize(
    ("key", "ours", "theirs"),
    [
        ("slo", {"kind": "absolute", "ttft_ms": 2000.0}, {"kind": "absolute", "ttft_ms": 100.0}),
        ("slo", {"ttft_ms": 2000.0}, {"kind": "scale"}),
        ("steps", {"lowest": 30, "highest": 50}, {"lowest": 8, "highest": 12}),
        ("schedule", "ddim", "euler"),
        ("weights", "random", "from its folder"),
        ("tensor_parallel", 2, 4),
        ("dtype", "float16", "bfloat16"),
        ("max_tokens", 128, 300),
        ("table_digest", "x", "y"),
        ("prompts", "log-normal", "talks.json"),
        ("device", "h100", "h200"),
        ("taken_at", "engine", "client"),
        ("requests", 20, 500),
        ("versions", {"vllm": "0.5.4"}, {"vllm": "0.5.5"}),
        ("a key that nobody has thought of", 1, 2),
    ],
)
def test_runs_whose_figures_mean_different_things_are_refused(key: str, ours: Any, theirs: Any) -> None:
    a, b = summary("neustream", 1.0, **{key: ours}), summary("vllm", 1.0, **{key: theirs})
    with pytest.raises(BadInput, match="a and b differ in ") as caught:
        compare(a, b)
    assert key.removesuffix("s") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(compare(a, b, force=True).splitlines()[2])
    compare(a, a)


def test_what_is_incidental_may_differ_and_is_said_where_it_may_matter() -> None:
    ours = {"table": "/a.json", "started": "today", "command": "x", "versions": {"commit": "aaa", "python": "3.11"}}
    theirs = {"table": "/b.json", "started": "now", "command": "y", "versions": {"commit": "bbb", "python": "3.12"}}
    text = compare(summary("a", 1.0, **ours), summary("b", 1.0, **theirs, complete=False))
    assert "the runs are of different commits: aaa and bbb" in text
    assert "run b was not completed" in text


def test_a_run_of_an_older_version_compares_with_one_of_today() -> None:
    old = summary("a", 1.0, slo="pslo and dslo of each setting")
    new = summary("b", 1.0, slo={"kind": "scale"}, image=None)
    assert "only one of the runs" not in compare(old, new)
    assert "only one of the runs says its image" in compare(old, {**new, "image": "cat.png"})


def test_the_command_refuses_in_one_line_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, tp in (("two", 2), ("four", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary(name, 1.0, tensor_parallel=tp)))
    names = [str(tmp_path / "two"), str(tmp_path / "four")]
    with pytest.raises(SystemExit) as stopped:
        main(names)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("exp.compare: a and b differ in tensor_parallel (2 and 4): ")
    assert error.count("\n") == 1
    assert main([*names, "--force"]) == 0
    assert "a and b differ in tensor_parallel (2 and 4)" in capsys.readouterr().out


def test_runs_without_a_common_setting_are_refused() -> None:
    other = summary("b", 1.0)
    other["settings"][0]["rate"] = 3.0
    with pytest.raises(BadInput, match="no setting in common"):
        match(summary("a", 1.0), other)
    with pytest.raises(BadInput, match="swept different things"):
        match(summary("a", 1.0), summary("b", 1.0, axes=["rate"]))


def test_a_missing_or_damaged_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run"):
        read_summary(str(tmp_path))
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(BadInput, match="is not JSON"):
        read_summary(str(tmp_path))
    (tmp_path / "summary.json").write_text(json.dumps(summary("a", 1.0)))
    assert read_summary(str(tmp_path))["policy"] == "a"
