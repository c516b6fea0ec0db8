"""Cells of a comparison: windows, loads, hidden lengths, figures, intervals, and the command."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from itertools import pairwise

import pytest

from neusim.evaluating import Cell, PolicySpec, Traffic, capacity, load_traffic, parse_policy, run_cell, slo_classes
from neusim.evaluating.__main__ import main
from neusim.evaluating.grid import Grid, run_grid
from neusim.evaluating.intervals import mean_interval, paired_difference, paired_ratio
from neusim.evaluating.report import against_peers
from neusim.evaluating.traffic import NUM_REQUESTS, TEST_ROWS, TRAINING_ROWS, window_rows
from neustream.latency import ContextLatency, TokensLatency
from neustream.policies.fcfs import Fcfs
from neustream.tables import LatencyTable, save_table
from neustream.workload.traces import TracedRequest, mean_rate

TABLE = LatencyTable(
    "toy",
    "here",
    {"prefill": TokensLatency((0.01, 0.0002, 0.0)), "decode": ContextLatency((0.03, 1e-6))},
    {"kv_blocks": 400, "kv_block_size": 16},
)
ROWS = tuple(TracedRequest(0.5 * i + 0.01 * (i % 3), 50 + 37 * i % 700, 5 + 11 * i % 60) for i in range(60))
CELL = Cell(TABLE, Traffic("toy", "0", ROWS), "C", 0.9, max_tokens=64)


def azure_csv(rows=ROWS):
    lines = [f"2023-11-16 18:{17 + int(r.offset) // 60}:{r.offset % 60:010.7f},{r.prompt},{r.output}" for r in rows]
    return "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n"


def test_no_request_is_in_two_windows_and_none_of_training_is_in_a_test():
    totals = {"azure-conv": 19366, "azure-code": 8819}
    for name, rows in TEST_ROWS.items():
        starts = sorted([*rows, *TRAINING_ROWS[name]])
        assert len(rows) == 10
        assert all(b - a >= NUM_REQUESTS for a, b in pairwise(starts)), name
        assert starts[-1] + NUM_REQUESTS <= totals[name]
    test, train = window_rows("other", 12031, "test"), window_rows("other", 12031, "train")
    assert not set(test) & set(train)
    assert len(test) + len(train) == 12031 // NUM_REQUESTS


def test_gaps_are_stretched_to_the_load():
    rows = CELL.workload().trace
    assert mean_rate(rows) == pytest.approx(0.9 * capacity(CELL))
    ratios = {round(b.offset / a.offset, 9) for a, b in zip(ROWS[1:], rows[1:], strict=True)}
    assert len(ratios) == 1
    assert mean_rate(replace(CELL, rate=3.0).workload().trace) == pytest.approx(3.0)


def test_capacity_is_what_saturated_fcfs_delivers_on_an_exact_device():
    """One request at a time: the sum of what each takes alone."""
    alone = replace(CELL, device={"max_num_seqs": 1})
    decode = TABLE["decode"]
    seconds = 0.0
    for row in ROWS:
        seconds += TABLE["prefill"].alone(row.prompt)
        seconds += sum(decode.alone(row.prompt + k) for k in range(1, row.output))
    assert capacity(alone) == pytest.approx(len(ROWS) / seconds)
    assert capacity(replace(alone, slowness=2.0, jitter=0.1)) == capacity(alone)
    assert capacity(CELL) > 2 * capacity(alone)


class Watching(Fcfs):
    """fcfs that notes how long the requests say that they may get."""

    def __init__(self):
        self.seen = set()

    def plan(self, now, streams, limits):
        self.seen.update(request.max_units for request in streams)
        return super().plan(now, streams, limits)


@pytest.mark.parametrize("knows", [False, True])
def test_where_an_output_ends_is_hidden_from_policies(knows):
    watching = Watching()
    row = run_cell(replace(CELL, knows_lengths=knows), lambda table, context: watching)
    assert watching.seen == ({min(r.output, 64) for r in ROWS} if knows else {64})
    assert row["units"] == sum(r.output for r in ROWS)
    hidden = run_cell(CELL, "fcfs")
    assert row["units_on_time"] == hidden["units_on_time"]


def test_figures_of_a_row():
    row = run_cell(CELL, "slack")
    assert row["requests"] == len(ROWS)
    assert row["good_share"] == row["good"] / len(ROWS)
    assert row["token_share"] == row["units_on_time"] / sum(r.output for r in ROWS)
    assert set(row["classes"]) == {"tight", "loose"}
    assert sum(figures["good"] for figures in row["classes"].values()) == row["good"]
    assert sum(part["good"] for part in row["by_size"]) == row["good"]
    assert [part["least"] for part in row["by_size"]] == sorted(part["least"] for part in row["by_size"])
    assert row["rate"] == pytest.approx(0.9 * capacity(CELL))
    assert row == run_cell(CELL, "slack")


def test_slower_steps_and_noise_change_what_is_met_but_not_what_comes():
    exact = run_cell(CELL, "fcfs")
    slower = run_cell(replace(CELL, slowness=1.5), "fcfs")
    noisy = run_cell(replace(CELL, jitter=0.3), "fcfs")
    assert slower["rate"] == noisy["rate"] == exact["rate"]
    assert slower["good"] < exact["good"]
    assert slower["seconds"] > exact["seconds"]
    assert noisy["seconds"] != exact["seconds"]
    assert run_cell(replace(CELL, jitter=0.3, seed=1), "fcfs")["seconds"] != noisy["seconds"]


def test_policies_by_name_path_and_option():
    assert parse_policy("chunked:budget=64") == PolicySpec("chunked", {"budget": 64})
    assert parse_policy("a.b:C:x=0.5:y=true:z=w") == PolicySpec("a.b:C", {"x": 0.5, "y": True, "z": "w"})
    small, large = run_cell(CELL, "chunked", budget=64), run_cell(CELL, parse_policy("chunked:budget=512"))
    assert small["policy"] == "chunked:budget=64"
    assert small["num_steps"] > large["num_steps"]
    own = run_cell(CELL, parse_policy("neustream.policies.chunked:Chunked:budget=64"))
    assert own["good"] == small["good"]
    for text, said in (("chunked:64", "option=value"), ("no.such:Thing", "cannot be imported")):
        with pytest.raises(ValueError, match=said):
            parse_policy(text).make(TABLE)


def test_slo_kinds():
    assert [(c.name, c.slo.ttft, c.slo.tpot) for c in slo_classes("C")] == [("tight", 1, 0.08), ("loose", 6, 0.2)]
    assert [c.name for c in slo_classes("x=ttft_ms:500,tpot_ms:50+y=ttft_ms:900,tpot_ms:90,share:3")] == ["x", "y"]
    with pytest.raises(ValueError, match="unknown SLO kind 'Z'"):
        slo_classes("Z")


def test_a_grid_gives_the_rows_of_its_cells_in_order():
    policies = (PolicySpec("fcfs"), PolicySpec("slack"))
    grid = Grid(CELL, (TABLE,), (CELL.traffic,), ("A", "C"), (0.5, 0.9), policies)
    ticks = []
    rows = run_grid(grid, processes=2, on_done=lambda: ticks.append(1))
    assert len(ticks) == grid.num_tasks == 1 + 8
    assert [(r["slo"], r["load"], r["policy"]) for r in rows[-4:]] == [
        ("C", 0.5, "fcfs"),
        ("C", 0.5, "slack"),
        ("C", 0.9, "fcfs"),
        ("C", 0.9, "slack"),
    ]
    assert rows[-1] == run_cell(CELL, "slack")


def test_intervals():
    interval = mean_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.count) == (2.0, 3)
    assert interval.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)  # t of 2 degrees of freedom
    assert mean_interval([5.0]).high == math.inf
    base = [10.0, 50.0, 90.0, 30.0]
    better = [12.0, 52.5, 91.5, 32.0]
    difference = paired_difference(better, base)
    assert difference.mean == pytest.approx(2.0)
    assert difference.low > 0  # though the runs differ by far more from each other
    assert mean_interval(better).low < mean_interval(base).high
    ratio = paired_ratio(better, base)
    assert ratio.mean == pytest.approx(188 / 180)
    assert 1.0 < ratio.low <= ratio.mean <= ratio.high < 1.21
    assert paired_ratio([1.0], [0.0]).mean == math.inf
    for wrong in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="as many on both sides"):
            paired_ratio(*wrong)


def test_the_command_writes_a_line_for_each_cell_and_policy(tmp_path, capsys):
    save_table(TABLE, tmp_path / "tables" / "here" / "toy.json")
    trace = tmp_path / "mine.csv"
    trace.write_text(azure_csv())
    out = tmp_path / "out.csv"
    where = ["--tables", str(tmp_path / "tables"), "--device", "here", "--model", "toy", "--trace", str(trace)]
    arguments = [*where, "--requests", "20", "--windows", "2", "--load", "0.5,1.2", "--slo", "A,C", "--csv", str(out)]
    assert main([*arguments, "--policy", "fcfs,chunked:budget=64", "--ours", "fcfs"]) == 0
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 2 * 2 * 2 * 2
    assert {row["window"] for row in rows} == {"0", "20"}
    assert all(int(row["requests"]) == 20 for row in rows)
    assert all((row["good tight"] == "") == (row["slo"] == "A") for row in rows)
    shown = capsys.readouterr().out
    assert "chunked:budget=64" in shown
    assert "±" in shown
    windows = load_traffic(str(trace), tmp_path, 2, num_requests=20)
    same = run_cell(replace(CELL, traffic=windows[1], slo="C", load=1.2, max_tokens=1024), "fcfs")
    found = [r for r in rows if (r["window"], r["slo"], r["load"], r["policy"]) == ("20", "C", "1.2", "fcfs")]
    assert [int(row["good"]) for row in found] == [same["good"]]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--slo", "Q"], "unknown SLO kind 'Q'"),
        (["--policy", "magic"], "unknown policy 'magic'"),
        (["--policy", "clockwork"], "does not serve"),
        (["--windows", "9"], "has 1 test windows of 600 requests, not 9"),
        (["--jitter", "0.1,0.2"], "takes one number"),
        (["--ours", "moore"], "--ours moore must be one of several in --policy"),
        (["--jitter", "1.5"], "below 1"),
        (["--trace", "nothing.csv"], "cannot be read"),
        (["--model", "gone"], "gone"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, more, said):
    save_table(TABLE, tmp_path / "tables" / "here" / "toy.json")
    trace = tmp_path / "mine.csv"
    trace.write_text(azure_csv([ROWS[i % 60]._replace(offset=0.1 * i) for i in range(700)]))
    where = ["--tables", str(tmp_path / "tables"), "--device", "here", "--model", "toy", "--trace", str(trace)]
    with pytest.raises(SystemExit) as stopped:
        main([*where, "--windows", "1", *more])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert error.count("\n") == 1


def test_made_up_traffic_has_a_window_for_each_seed(tmp_path):
    test, train = (load_traffic("azure-code-like", tmp_path, 2, part, 50) for part in ("test", "train"))
    assert [traffic.window for traffic in (*test, *train)] == ["seed 0", "seed 1", "seed 1000", "seed 1001"]
    assert len({traffic.rows for traffic in (*test, *train)}) == 4
    assert run_cell(replace(CELL, traffic=test[0]), "fcfs")["requests"] == 50


def test_ours_is_paired_with_the_best_other_of_each_cell():
    def row(window, load, policy, share):
        where = {"device": "d", "model": "m", "trace": "t", "slo": "A", "seed": 0}
        return {**where, "window": window, "load": load, "policy": policy, "good_share": share}

    shares = {"slack": (0.5, 0.9), "fcfs": (0.4, 0.8), "neustream": (0.1, 0.99)}
    rows = [row(w, 1, p, s[w]) for p, s in shares.items() for w in (0, 1)]
    rows += [row(w, 2, p, 0.5 + 0.1 * (p == "fcfs")) for p in shares for w in (0, 1)]
    heading, low, high = against_peers(rows, "slack", "good_share").splitlines()
    assert heading.split()[-4:] == ["it", "has", "difference", "ratio"]
    assert " ".join(low.split()[4:]) == "1 2 70.0 fcfs 60.0 +10.0 (+10.0 … +10.0) 1.167 (1.125 … 1.250)"
    assert " ".join(high.split()[4:]) == "2 2 50.0 fcfs 60.0 -10.0 (-10.0 … -10.0) 0.833 (0.833 … 0.833)"
