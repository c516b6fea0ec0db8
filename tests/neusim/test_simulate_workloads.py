"""`simulate.py` with absolute SLOs, SLO classes, traces, and tables of several devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neusim import simulate
from neusim.sim.workload import TraceWorkload
from neustream import LatencyTable, ScaleSlo, save_table
from neustream.latency import BatchLatency, ContextLatency, MixedLatency, TokensLatency
from neustream.tables import table_path
from neustream.workload.traces import TracedRequest


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    llm = {"prefill": TokensLatency((0.02, 0.001, 0.0)), "decode": ContextLatency((0.03, 1e-5), (1, 8), (0.03, 0.05))}
    fast = {"prefill": TokensLatency((0.01, 0.0005, 0.0)), "decode": ContextLatency((0.015, 1e-5))}
    loop = {"denoise": BatchLatency((1, 2), (0.1, 0.12)), "vae": BatchLatency((1, 2), (0.05, 0.1))}
    for name, table in (
        ("opt-hand", LatencyTable("opt-hand", "gpu", llm)),
        ("opt-hand.tp2", LatencyTable("opt-hand", "gpu", fast, {"tensor_parallel": 2})),
        ("dit-hand", LatencyTable("dit-hand", "gpu", loop)),
    ):
        save_table(table, table_path(tmp_path / "tables", "gpu", name))
    return tmp_path / "tables"


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    path = tmp_path / "azure.csv"
    rows = [f"2023-11-16 18:17:{i:02d}.5000000,{20 + i},{3 + i}" for i in range(0, 40, 2)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    return path


def rows_of(tables: Path, tmp_path: Path, *arguments: str, model: str = "opt-hand") -> list[dict]:
    out = tmp_path / "out.json"
    common = ["--tables", str(tables), "--device", "gpu", "--processes", "1", "--json", str(out), "--model", model]
    assert simulate.main([*common, *arguments]) == 0
    rows: list[dict] = json.loads(out.read_text())
    return rows


def refusal(tables: Path, capsys: pytest.CaptureFixture, *arguments: str, model: str = "opt-hand") -> str:
    with pytest.raises(SystemExit) as ended:
        simulate.main(["--tables", str(tables), "--device", "gpu", "--model", model, *arguments])
    assert ended.value.code == 2
    error: str = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_an_slo_on_the_first_token_alone_is_met_on_an_idle_device_by_every_policy(tables, tmp_path):
    arguments = ["--policy", "fcfs,neustream,slack", "--rate", "0.2", "--requests", "15", "--max-tokens", "20"]
    rows = rows_of(tables, tmp_path, *arguments, "--goodput", "ttft:500")
    assert [(row["good"], row["ttft_ms"]) for row in rows] == [(15, 500.0)] * 3
    assert rows[0]["lateness"] == {"p50": None, "p90": None, "p99": None}


def test_classes_share_the_queue_and_each_is_counted_by_its_own_slo(tables, tmp_path, capsys):
    classes = ["--slo-class", "fast=ttft_ms:400,tpot_ms:60,share:3", "--slo-class", "lax=e2el_ms:600000"]
    arguments = ["--policy", "fcfs,slack", "--rate", "8", "--requests", "80", "--max-tokens", "30", *classes]
    rows = rows_of(tables, tmp_path, *arguments)
    for row in rows:
        assert set(row["classes"]) == {"fast", "lax"}
        assert sum(figures["requests"] for figures in row["classes"].values()) == 80
        assert sum(figures["good"] for figures in row["classes"].values()) == row["good"]
        assert row["classes"]["lax"]["slo_attainment"] == 1.0
    assert rows[0]["classes"]["fast"]["slo_attainment"] < rows[1]["classes"]["fast"]["slo_attainment"]
    assert capsys.readouterr().out.count("lax") == 2


def test_a_trace_is_played_as_it_came_or_faster_and_its_outputs_end_where_they_did(tables, tmp_path, azure):
    rows = rows_of(tables, tmp_path, "--policy", "fcfs", "--trace", str(azure), "--trace-scale", "1,4")
    assert [(row["requests"], row["trace_scale"]) for row in rows] == [(20, 1.0), (20, 4.0)]
    assert [row["rate"] for row in rows] == [pytest.approx(0.5), pytest.approx(2.0)]
    assert [row["units"] for row in rows] == [sum(range(3, 43, 2))] * 2
    assert all(row["bound"] >= row["good"] for row in rows)
    assert "cv" not in rows[0]


def test_a_window_and_a_maximum_cut_a_trace(tables, tmp_path, azure):
    arguments = ["--policy", "fcfs", "--trace", str(azure), "--trace-window", "10:20", "--max-tokens", "15"]
    (row,) = rows_of(tables, tmp_path, *arguments)
    assert (row["requests"], row["units"]) == (5, 13 + 4 * 15)


def test_policies_see_a_traced_requests_maximum_and_the_bound_its_true_length():
    table = LatencyTable("m", "d", {"prefill": TokensLatency((1.0, 0.0, 0.0)), "decode": ContextLatency((1.0, 0.0))})
    workload = TraceWorkload([TracedRequest(0.0, 7, 4), TracedRequest(1.0, 8, 900)], ScaleSlo(3.0), 50)
    hidden = list(workload.requests(table))
    assert [(request.max_units, workload.num_units(request)) for request in hidden] == [(50, 4), (50, 50)]
    told = TraceWorkload(workload.trace, ScaleSlo(3.0), 50, is_hidden=False)
    assert [request.max_units for request in told.requests(table)] == [4, 50]


def test_a_dataset_without_times_gives_lengths_and_the_rate_gives_times(tables, tmp_path):
    path = tmp_path / "talks.json"
    talk = [{"from": "human", "value": "how " * 30}, {"from": "gpt", "value": "so " * 6}]
    path.write_text(json.dumps([{"conversations": talk}] * 12))
    (row,) = rows_of(tables, tmp_path, "--policy", "fcfs", "--trace", str(path), "--rate", "2")
    assert (row["requests"], row["units"], row["rate"], row["cv"]) == (12, 12 * 8, 2.0, 1.0)


def test_a_table_of_two_devices_is_simulated_by_number_or_by_name(tables, tmp_path):
    quick = ["--policy", "fcfs", "--rate", "1", "--requests", "10", "--max-tokens", "10"]
    (one,), (two,) = (rows_of(tables, tmp_path, *quick, *tp) for tp in ([], ["--tp", "2"]))
    (named,) = rows_of(tables, tmp_path, *quick, model="opt-hand.tp2")
    assert two["e2el"]["p50"] < one["e2el"]["p50"]
    assert named["e2el"] == two["e2el"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--goodput", "ttft:500", "--pslo", "3"], "--goodput states absolute SLOs: give it or --pslo, not both"),
        (["--goodput", "ttft:-1"], "--goodput takes ttft:MS"),
        (["--goodput", "tpot:50"], "needs ttft_ms too"),
        (["--slo-class", "a=ttft_ms:1", "--dslo", "2"], "give no other SLO beside it"),
        (["--slo-class", "a=ttft_ms:1", "--slo-class", "a=ttft_ms:2"], "two SLO classes are called 'a'"),
        (["--slo-class", "a"], "an SLO class is written as"),
        (["--trace-scale", "2"], "--trace-scale needs --trace"),
        (["--trace-window", "0:5"], "--trace-window needs --trace"),
        (["--trace-window", "5:1"], "must have 0 <= A < B, got 5:1"),
        (["--trace", "nowhere.csv"], "trace nowhere.csv: cannot be read"),
        (["--trace", "AZURE", "--rate", "3"], "--rate and --cv do not apply"),
        (["--trace", "AZURE", "--trace-window", "900:901"], "the trace has no request between 900 s and 901 s"),
        (["--tp", "4"], "no table of opt-hand"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tables, capsys, azure, arguments, message):
    arguments = [str(azure) if argument == "AZURE" else argument for argument in arguments]
    assert message in refusal(tables, capsys, *arguments)


def test_a_trace_of_prompts_is_no_workload_of_an_image_pipeline(tables, capsys, azure):
    error = refusal(tables, capsys, "--trace", str(azure), "--steps", "4", model="dit-hand")
    assert "--trace is for language models; dit-hand is an image pipeline" in error


def test_hidden_lengths_are_the_same_requests_whether_policies_are_told_or_not(tables, tmp_path):
    arguments = ["--policy", "fcfs,slack", "--rate", "12", "--requests", "60", "--lengths", "lognormal"]
    hidden = rows_of(tables, tmp_path, *arguments, "--mean-output", "40", "--max-tokens", "200", "--no-bound")
    told = rows_of(tables, tmp_path, *arguments, "--mean-output", "40", "--max-tokens", "200", "--no-bound", "--oracle")
    fixed = rows_of(tables, tmp_path, *arguments[:6], "--max-tokens", "200", "--no-bound")
    assert [row["lengths"] for row in (hidden[0], told[0], fixed[0])] == ["lognormal", "lognormal", "fixed"]
    assert [row["knows_lengths"] for row in (hidden[0], told[0])] == [False, True]
    assert hidden[0]["units"] == told[0]["units"] < fixed[0]["units"] == 60 * 200
    assert 25 < hidden[0]["units"] / 60 < 55
    assert {key: hidden[0][key] for key in ("ttft", "tpot")} == {key: told[0][key] for key in ("ttft", "tpot")}  # fcfs


def test_a_trace_of_fixed_lengths_keeps_its_prompts_and_times(tables, tmp_path, azure):
    arguments = ["--policy", "fcfs", "--trace", str(azure), "--no-bound"]
    (own,) = rows_of(tables, tmp_path, *arguments)
    (fixed,) = rows_of(tables, tmp_path, *arguments, "--lengths", "fixed", "--max-tokens", "9")
    assert (fixed["units"], fixed["rate"]) == (20 * 9, own["rate"])
    assert fixed["by_size"][0]["least"] == own["by_size"][0]["least"] == 20


def test_prompts_of_a_trace_share_their_common_blocks_unless_told_not_to(tables, tmp_path, capsys):
    lines = [
        {"timestamp": 4000 * i, "input_length": 1100, "output_length": 3, "hash_ids": [i % 2, 2 + i % 2, 10 + i]}
        for i in range(8)
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    arguments = ["--policy", "fcfs", "--trace", str(path)]
    (shared,), (own,) = (rows_of(tables, tmp_path, *arguments, *more) for more in ([], ["--no-prefix-cache"]))
    assert shared["spared"] == pytest.approx(6 * 1024 / (8 * 1100))
    assert "prefix hits" in capsys.readouterr().out
    assert "spared" not in own
    assert shared["ttft"]["p50"] < 0.3 * own["ttft"]["p50"]
    assert shared["bound"] is None  # it knows of no hits, and would be too low
    assert own["bound"] >= own["good"]


def test_a_measured_mixed_module_leaves_no_bound(tmp_path):
    modules = {"prefill": TokensLatency((0.02, 0.001, 0.0)), "decode": ContextLatency((0.03, 1e-5))}
    table = LatencyTable("opt-hand", "gpu", modules, {}, MixedLatency(0.02, 1e-4))
    save_table(table, table_path(tmp_path / "tables", "gpu", "opt-hand"))
    (row,) = rows_of(tmp_path / "tables", tmp_path, "--policy", "chunked", "--rate", "1", "--requests", "9")
    assert row["bound"] is None


def test_published_traffic_needs_no_file(tables, tmp_path, capsys):
    arguments = ["--trace", "azure-conv-like", "--requests", "40", "--trace-scale", "0.05,0.1", "--no-bound"]
    rows = rows_of(tables, tmp_path, "--policy", "fcfs", *arguments, "--by-size")
    assert [row["requests"] for row in rows] == [40, 40]
    assert rows[1]["rate"] == pytest.approx(2 * rows[0]["rate"])
    shown = capsys.readouterr().out
    assert "outputs end where the trace says" in shown
    assert shown.count(f"to {rows[0]['by_size'][0]['most']}") == 1
    assert "as vLLM counts" in shown


def test_bursts_come_at_the_same_rate_and_are_harder(tables, tmp_path):
    arguments = ["--policy", "fcfs", "--rate", "2", "--requests", "300", "--max-tokens", "10", "--no-bound"]
    (even,) = rows_of(tables, tmp_path, *arguments)
    (burst,) = rows_of(tables, tmp_path, *arguments, "--burst", "20:5")
    assert burst["burst"] == {"size": 20, "gap": 0.005}
    assert "cv" not in burst
    assert burst["ttft"]["p99"] > 2 * even["ttft"]["p99"]
    (images,) = rows_of(tables, tmp_path, *arguments[:6], "--steps", "3", "--burst", "5:0", model="dit-hand")
    assert images["burst"] == {"size": 5, "gap": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "trace"], "--lengths trace needs --trace"),
        (["--mean-output", "50"], "--mean-output needs --lengths lognormal"),
        (["--lengths", "lognormal", "--mean-output", "0"], "must be at least 1"),
        (["--oracle"], "--oracle needs outputs whose lengths vary"),
        (["--oracle", "--trace", "AZURE", "--lengths", "fixed"], "--oracle needs outputs whose lengths vary"),
        (["--burst", "5:10", "--cv", "2"], "give it or --cv, not both"),
        (["--burst", "0.5:10"], "at least 1 request in the mean"),
        (["--burst", "5"], "as SIZE:GAP"),
        (["--burst", "5:900", "--rate", "2"], "cannot make 2 requests/s"),
        (["--trace", "AZURE", "--burst", "5:10"], "--burst does not apply"),
    ],
)
def test_lengths_and_bursts_that_cannot_be_are_refused(tables, capsys, azure, arguments, message):
    arguments = [str(azure) if argument == "AZURE" else argument for argument in arguments]
    assert message in refusal(tables, capsys, *arguments)


def test_output_lengths_are_no_matter_of_an_image_pipeline(tables, capsys):
    error = refusal(tables, capsys, "--lengths", "lognormal", "--steps", "4", model="dit-hand")
    assert "--lengths is for language models" in error
