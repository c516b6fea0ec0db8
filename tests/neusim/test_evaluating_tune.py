"""The command that tries a policy's constants on training windows."""

from __future__ import annotations

import pytest

from neusim.evaluating.traffic import load_traffic
from neusim.evaluating.tune import MOST_COMBINATIONS, combinations, main, ranking
from neustream.latency import ContextLatency, TokensLatency
from neustream.tables import LatencyTable, save_table

TABLE = LatencyTable(
    "toy",
    "here",
    {"prefill": TokensLatency((0.01, 0.0002, 0.0)), "decode": ContextLatency((0.03, 1e-6))},
    {"kv_blocks": 400, "kv_block_size": 16},
)


@pytest.fixture
def where(tmp_path):
    """Arguments that name a table and a trace of 100 requests: five windows of 20, the third for training."""
    save_table(TABLE, tmp_path / "tables" / "here" / "toy.json")
    lines = [f"2023-11-16 18:17:{0.5 * i:010.7f},{50 + 37 * i % 700},{5 + 11 * i % 60}" for i in range(100)]
    trace = tmp_path / "mine.csv"
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    tables = ["--tables", str(tmp_path / "tables"), "--device", "here", "--model", "toy"]
    return [*tables, "--trace", str(trace), "--requests", "20", "--windows", "1"]


def test_every_combination_is_tried_once():
    specs = combinations("qoserve:caution=1.1", ["alpha=0.002,0.008,0.002", "late_hold=true,false"])
    assert [spec.label for spec in specs] == [
        f"qoserve:caution=1.1:alpha={alpha}:late_hold={hold}" for alpha in (0.002, 0.008) for hold in (True, False)
    ]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (["alpha"], "expected option=value,value…"),
        (["alpha=1,,2"], "expected option=value,value…"),
        (["alpha=1", "alpha=2"], "alpha is given twice"),
        (["caution=1"], "caution is given twice"),
        ([f"alpha={','.join(map(str, range(MOST_COMBINATIONS + 1)))}"], "at most 200"),
    ],
)
def test_a_grid_that_is_none_is_refused(grid, said):
    with pytest.raises(ValueError, match=said):
        combinations("qoserve:caution=1.1", grid)


def test_the_best_in_the_mean_comes_first_and_a_ratio_says_what_it_gives_away():
    axes = {"device": "d", "model": "m", "trace": "t", "window": "0", "load": 1.0, "slowness": 1.0}
    shares = {("x", "A"): 0.4, ("x", "B"): 0.9, ("y", "A"): 0.5, ("y", "B"): 0.5}
    rows = [{**axes, "slo": slo, "policy": name, "good_share": share} for (name, slo), share in shares.items()]
    lines = [line.split() for line in ranking(rows, "good_share").splitlines()]
    assert lines[1:] == [
        ["x", "40.0", "90.0", "65.00", "0.900", "0.800"],
        ["y", "50.0", "50.0", "50.00", "0.778", "0.556"],
    ]


def test_the_command_runs_on_training_windows_only(where, tmp_path, capsys):
    grid = ["--policy", "chunked", "--grid", "budget=32,256", "--slo", "A", "--load", "0.9", "--slowness", "1,1.2"]
    assert main([*where, *grid, "--processes", "1"]) == 0
    shown = capsys.readouterr().out
    (window,) = load_traffic(str(tmp_path / "mine.csv"), tmp_path, 1, "train", 20)
    assert window.window == "40"
    assert f"training windows: {tmp_path / 'mine.csv'} 40\n" in shown
    assert sorted(line.split()[0] for line in shown.splitlines()[3:]) == ["chunked:budget=256", "chunked:budget=32"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--policy", "chunked", "--grid", "colour=1"], "has no option 'colour'"),
        (["--policy", "chunked", "--grid", "budget=0"], "budget must be a whole number of at least 1"),
        (["--policy", "chunked", "--grid", "budget"], "expected option=value"),
        (["--policy", "chunked", "--grid", "budget=9", "--windows", "9"], "train windows"),
        (["--policy", "chunked"], "--grid"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(where, capsys, more, said):
    with pytest.raises(SystemExit) as stopped:
        main([*where, *more])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert error.count("\n") == 1
