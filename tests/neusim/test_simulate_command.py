"""`simulate.py` as a user runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from neusim import simulate
from neustream import LatencyTable, save_table
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.tables import table_path

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {
    "device", "model", "policy", "rate", "cv", "requests", "good", "request_goodput", "token_goodput",
    "slo_attainment", "reject_rate", "ttft", "tpot", "e2el", "lateness", "bound", "table_origin",
}  # fmt: skip


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    loop = {
        "text_encoder": BatchLatency((1, 2), (0.01, 0.015)),
        "denoise": BatchLatency((1, 2, 4, 8), (0.1, 0.12, 0.16, 0.24)),
        "vae": BatchLatency((1, 2), (0.05, 0.1)),
    }
    llm = {"prefill": TokensLatency((0.02, 0.001, 0.0)), "decode": ContextLatency((0.03, 1e-5), (1, 8), (0.03, 0.05))}
    for table in (
        LatencyTable("sd-hand", "gpu", loop, {"spread": 0.1}),
        LatencyTable("odd", "gpu", loop),
        LatencyTable("opt-hand", "gpu", llm, {"estimated": {"peak": 1}}),
    ):
        save_table(table, table_path(tmp_path / "tables", table.device, table.model))
    return tmp_path / "tables"


def run(tables: Path, *arguments: str) -> int:
    return simulate.main(["--tables", str(tables), "--device", "gpu", "--processes", "1", *arguments])


def test_lists_are_swept_as_a_product_and_every_run_is_an_object(tables, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = ["--model", "sd-hand", "--policy", "neustream,clockwork", "--rate", "1,3", "--slo-scale", "2,4"]
    assert run(tables, *arguments, "--requests", "20", "--steps", "3:6", "--cv", "1", "--json", str(out)) == 0
    rows = json.loads(out.read_text())
    assert [(row["rate"], row["slo_scale"], row["policy"]) for row in rows] == [
        (rate, scale, policy) for rate in (1, 3) for scale in (2, 4) for policy in ("neustream", "clockwork")
    ]
    for row in rows:
        assert row.keys() >= FIELDS
        assert (row["device"], row["model"], row["cv"], row["requests"]) == ("gpu", "sd-hand", 1, 20)
        assert row["slo_attainment"] == pytest.approx(row["good"] / 20)
        assert row["good"] + row["late"] + row["rejected"] == 20
        assert {"p50", "p90", "p99"} <= row["e2el"].keys()
        assert row["bound"] >= row["good"]
        assert row["table_origin"] == "measured"
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "sd-hand on gpu, measured latency table, the artifact's processes, 3…5 steps; virtual time"
    assert len(shown) == 2 + len(rows)
    assert len({len(line) for line in shown[1:]}) == 1


def test_a_language_model_has_both_slo_scales_and_says_that_its_table_is_estimated(tables, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = ["--model", "opt-hand", "--policy", "fcfs,neustream", "--rate", "3", "--requests", "15"]
    assert run(tables, *arguments, "--pslo", "4", "--dslo", "1.5,2", "--max-tokens", "5", "--json", str(out)) == 0
    rows = json.loads(out.read_text())
    assert [(row["pslo"], row["dslo"], row["policy"]) for row in rows] == [
        (4, dslo, policy) for dslo in (1.5, 2) for policy in ("fcfs", "neustream")
    ]
    assert all("slo_scale" not in row and row["table_origin"] == "estimated" for row in rows)
    assert all(row["token_goodput"] >= 5 * row["request_goodput"] - 1e-9 for row in rows)
    head, columns, *_ = capsys.readouterr().out.splitlines()
    assert head == "opt-hand on gpu, estimated latency table, unbounded KV cache, 5 tokens each; virtual time"
    assert "token goodput/s" in columns


def test_without_a_rate_it_is_the_capacity_and_without_a_bound_there_is_none(tables, tmp_path):
    out = tmp_path / "out.json"
    assert (
        run(tables, "--model", "opt-hand", "--requests", "5", "--max-tokens", "4", "--no-bound", "--json", str(out))
        == 0
    )
    (row,) = json.loads(out.read_text())
    assert row["rate"] > 0
    assert row["bound"] is None


def test_a_smaller_device_serves_less(tables, tmp_path):
    goods = []
    for extra in ((), ("--kv-blocks", "30"), ("--max-num-seqs", "1"), ("--overhead-ms", "50")):
        out = tmp_path / "out.json"
        arguments = ["--model", "opt-hand", "--policy", "fcfs", "--rate", "2", "--requests", "40", "--max-tokens", "20"]
        assert run(tables, *arguments, "--no-bound", "--json", str(out), *extra) == 0
        goods.append(json.loads(out.read_text())[0]["good"])
    assert all(good < goods[0] for good in goods[1:])


def test_the_measured_spread_of_the_steps_can_be_had(tables, tmp_path):
    latencies = []
    for jitter in ("0", "0.1", "table"):
        out = tmp_path / "out.json"
        assert (
            run(tables, "--model", "sd-hand", "--rate", "1", "--requests", "5", "--jitter", jitter, "--json", str(out))
            == 0
        )
        latencies.append(json.loads(out.read_text())[0]["e2el"]["p99"])
    assert latencies[0] != latencies[1] == latencies[2]


def test_the_layout_is_a_choice(tables, capsys):
    arguments = ["--model", "sd-hand", "--rate", "1", "--requests", "5", "--no-bound"]
    assert run(tables, *arguments, "--layout", "interleaved", "--handover-ms", "10") == 0
    assert "modules interleaved, 30…50 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nope"], "no table of nope on gpu in .*; there are gpu/odd, gpu/opt-hand, gpu/sd-hand"),
        (["--model", "sd-hand", "--policy", "nope"], "unknown policy 'nope'; there are .*neustream"),
        (["--model", "sd-hand", "--policy", "chunked"], "policy 'chunked' does not serve sd-hand; .*clockwork"),
        (["--model", "opt-hand", "--slo-scale", "3"], "--slo-scale does not apply: opt-hand is a language model"),
        (["--model", "opt-hand", "--steps", "3:5"], "--steps does not apply: opt-hand is a language model"),
        (["--model", "sd-hand", "--rate", "1", "--pslo", "3"], "--pslo does not apply: sd-hand is an image pipeline"),
        (["--model", "sd-hand"], "give --rate: there is no published one for sd-hand"),
        (["--model", "odd", "--rate", "1"], "give --steps lo:hi: how many denoising steps odd takes is not known"),
        (["--model", "sd-hand", "--rate", "0"], "--rate: must be above 0, got 0"),
        (["--model", "sd-hand", "--rate", "1,x"], "--rate: expected numbers like 1,1.5, got '1,x'"),
        (["--model", "sd-hand", "--rate", "inf"], "--rate: must be above 0, got inf"),
        (["--model", "sd-hand", "--slo-scale", "0.9"], "--slo-scale: must be at least 1, got 0.9"),
        (["--model", "sd-hand", "--steps", "9:9"], "--steps: steps must be in 1…1000"),
        (["--model", "sd-hand", "--requests", "-1"], "--requests: must be at least 1, got -1"),
        (["--model", "sd-hand", "--rate", "1", "--jitter", "2"], "jitter is relative to the step"),
        (["--model", "sd-hand", "--rate", "1", "--jitter", "x"], "--jitter: expected a number or `table`, got 'x'"),
        (["--model", "opt-hand", "--jitter", "table"], "table of opt-hand does not say how steps spread"),
        (["--model", "sd-hand", "--rate", "1", "--handover-ms", "-1"], "handover must be at least 0"),
        (["--model", "sd-hand", "--rate", "1", "--json", "/none/x.json"], "--json /none/x.json cannot be written"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(tables, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        run(tables, *arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_a_folder_of_tables_that_is_not_there_is_refused(tables, capsys):
    with pytest.raises(SystemExit) as ended:
        run(tables / "gone", "--model", "sd-hand")
    assert ended.value.code == 2
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("how", [["-m", "neusim.simulate"], [str(ROOT / "neusim" / "simulate.py")]])
def test_it_runs_as_a_module_and_as_a_script_with_a_bar_for_a_sweep(tables, how):
    """As a script it must not find its sibling profile.py in place of the standard library's."""
    arguments = ["--tables", str(tables), "--device", "gpu", "--model", "sd-hand", "--rate", "1,2", "--requests", "8"]
    result = subprocess.run([sys.executable, *how, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 4
    assert "4/4" in result.stderr


def test_it_needs_no_deep_learning_framework(tables):
    probe = "import sys, neusim.simulate, neusim.validate; print({'torch', 'vllm', 'diffusers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
