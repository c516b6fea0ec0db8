"""Two runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exp.compare import compare, match, read_summary
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
    (row,) = match(summary("a", 30.0), summary("b", 0.0))
    assert row["token_goodput_ratio"] is None


def test_says_what_makes_the_runs_differ() -> None:
    text = compare(summary("a", 1.0, table_digest="x"), summary("b", 1.0, table_digest="y", complete=False))
    assert "the runs differ in table_digest: x and y" in text
    assert "run b was not completed" in text


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
