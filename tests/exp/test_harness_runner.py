"""A run without an engine: everything in is accounted for, and kept, however it ends."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exp_fakes import FakeBench, send_signal

from exp.harness.client import Client
from exp.harness.folder import create_run_folder
from exp.harness.report import disturbances, goodput_columns
from exp.harness.runner import run_settings
from exp.harness.settings import sweep

HEADER = {"policy": "fake", "model": "nano", "taken_at": "engine", "capacity": 100.0}
COLUMNS = goodput_columns(["rate", "cv"])


def run(bench: FakeBench, tmp_path: Path, rates: tuple[float, ...] = (500.0, 1000.0), repeats: int = 1) -> int:
    settings = sweep({"rate": rates, "cv": (1.0,)}, repeats=repeats)
    with create_run_folder(str(tmp_path / "run"), "fake", "nano") as folder:
        return run_settings(bench, settings, folder, HEADER, best_by="token_goodput", columns=COLUMNS)


def lines(tmp_path: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]


def summary(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "run" / "summary.json").read_text())


def test_every_request_sent_is_accounted_for_once(tmp_path: Path) -> None:
    assert run(FakeBench(10), tmp_path) == 0
    ids = [(line["setting"], line["id"]) for line in lines(tmp_path, "requests.jsonl")]
    assert sorted(ids) == sorted((setting, f"r{i}") for setting in (0, 1) for i in range(10))
    for row in summary(tmp_path)["settings"]:
        assert (row["requests"], row["met"], row["late"], row["good"]) == (10, 5, 5, 5)
        assert row["slo_attainment"] == 0.5
    assert summary(tmp_path)["complete"] is True


def test_the_summary_agrees_with_the_steps(tmp_path: Path) -> None:
    run(FakeBench(10), tmp_path, rates=(500.0,))
    steps = lines(tmp_path, "steps.jsonl")
    row = summary(tmp_path)["settings"][0]
    assert row["steps"] == len(steps)
    assert row["step_seconds"] == pytest.approx(sum(step["seconds"] for step in steps))
    assert row["decision_share"] == row["schedule_share"] == pytest.approx(0.005)
    assert row["scheduler_share"] == pytest.approx(0.01)
    assert row["prediction_error"] == pytest.approx(0.5)
    assert row["slowdown"] == pytest.approx(2.0)
    assert row["load"] == 5.0
    assert row["waited_share"] >= 0
    assert all(0 <= step["time"] < 10 for step in steps)
    assert all(step["num_queued"] == step["batch_size"] for step in steps)


def test_every_setting_has_a_driver_of_its_own_which_is_closed_after_it(tmp_path: Path) -> None:
    bench = FakeBench(4)
    run(bench, tmp_path, rates=(500.0, 1000.0, 2000.0))
    assert [(driver.is_closed, len(driver.submitted)) for driver in bench.drivers] == [(True, 4)] * 3


def test_prints_a_row_per_setting_and_says_where_times_were_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(FakeBench(4), tmp_path)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "model nano, policy fake, capacity 100 req/s"
    assert out[1].split()[:2] == ["rate", "cv"]
    assert [line.split()[0] for line in out[2:4]] == ["500", "1000"]
    assert "50.0%" in out[2]
    assert len({len(line) for line in out[1:4]}) == 1
    assert out[4].startswith("times taken at the engine; everything is in ")
    assert "steps took up to 2.00 × what the latency table says, and the SLOs are the table's" in out[5:]


def test_what_makes_figures_doubtful_is_said() -> None:
    calm = {"waited_share": 0.05, "slowdown": 1.0, "client_lag": 0.001}
    assert disturbances([calm, {**calm, "slowdown": None}]) == []
    assert disturbances([calm, {**calm, "client_lag": 0.012}]) == [
        "the client sent requests up to 12 ms after their time; they count from then on"
    ]
    (waited,) = disturbances([{**calm, "waited_share": 0.4}])
    assert "its threads waited 0.40 s per second for a core" in waited


def test_the_max_log_keeps_the_best_repeat_of_each_setting(tmp_path: Path) -> None:
    run(FakeBench(6), tmp_path, repeats=2)
    rows = summary(tmp_path)["settings"]
    assert [row["seed"] for row in rows] == [0, 1, 0, 1]
    every, best = ((tmp_path / "run" / f"step_prediction{end}.log").read_text().splitlines() for end in ("", "_max"))
    assert len(every) == 4
    chosen = [max((0, 1), key=lambda i: rows[i]["token_goodput"]), max((2, 3), key=lambda i: rows[i]["token_goodput"])]
    assert best == [every[i] for i in chosen]
    assert best[0].startswith("policy=fake model=nano rate=500 cv=1 repeat=")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_writes_what_there_is(tmp_path: Path, number: signal.Signals, code: int) -> None:
    bench = FakeBench(10, step3=lambda: send_signal(number))
    assert run(bench, tmp_path, rates=(200.0, 300.0)) == code
    assert len(bench.drivers) == 1, "no further setting was begun"
    ended = lines(tmp_path, "requests.jsonl")
    assert sorted(line["id"] for line in ended) == sorted(bench.drivers[0].submitted)
    assert 0 < len(ended) < 10
    result = summary(tmp_path)
    assert result["complete"] is False
    assert [row["complete"] for row in result["settings"]] == [False]


def test_a_dead_client_ends_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clients: list[Client] = []
    original = Client.start

    def start(client: Client) -> float:
        clients.append(client)
        return original(client)

    monkeypatch.setattr(Client, "start", start)
    bench = FakeBench(100, step3=lambda: os.kill(clients[0].pid or 0, signal.SIGKILL))
    assert run(bench, tmp_path, rates=(100.0,)) == 1
    assert "the client process ended early (exit code -9)" in capsys.readouterr().err
    assert len(lines(tmp_path, "requests.jsonl")) == len(bench.drivers[0].submitted) > 0
    assert summary(tmp_path)["complete"] is False


def test_an_engine_error_keeps_what_was_measured_and_the_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("out of luck")

    bench = FakeBench(10, step2=fail)
    assert run(bench, tmp_path, rates=(500.0,)) == 1
    error = capsys.readouterr().err
    assert "stopped at rate 500 cv 1: the engine failed: RuntimeError: out of luck" in error
    assert "in fail" in (tmp_path / "run" / "error.txt").read_text()
    assert {line["outcome"] for line in lines(tmp_path, "requests.jsonl")} == {"aborted"}


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files end at 16 KiB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_gives_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(FakeBench(200, seconds=0.0), tmp_path, rates=(5000.0,)) == 1
    stopped = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(stopped) == 1
    assert "cannot write to" in stopped[0]
    assert "File too large" in stopped[0]
