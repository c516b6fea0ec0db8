"""The executor's latency table: how programs are timed, and that what is written is a table."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import pytest
from sandbox_helpers import make_sandbox

from agent_plugin.sandbox.client import SandboxRefused
from agent_plugin.sandbox.result import Picture, ToolResult
from agent_plugin.tools import measure
from agent_plugin.tools.driver import ToolDriver
from agent_plugin.tools.plots import PlotLibrary
from neustream.catalog.workflows import CODE_RUNNER, EXECUTE
from neustream.cli.arguments import RunFailed
from neustream.tables import load_table
from neustream.workflow.stage import tool_stage

PROGRAMS = PlotLibrary(0, {"ok": 1.0}).programs(12)


DRAWN = (Picture("a.png", 1, 1, b""),)


class Counting:
    """Runs nothing; counts how many programs are under way, and ends each in a moment."""

    def __init__(self, pictures=DRAWN):
        self.under_way, self.most, self.pictures, self.codes = 0, 0, pictures, []
        self._lock = threading.Lock()

    def submit(self, code):
        future = Future()
        with self._lock:
            self.codes.append(code)
            self.under_way += 1
            self.most = max(self.most, self.under_way)

        def end():
            with self._lock:
                self.under_way -= 1
            future.set_result(ToolResult("ok" if self.pictures else "failed", 0.0, "none", pictures=self.pictures))

        threading.Timer(0.01, end).start()
        return future

    def run(self, code):
        return self.submit(code).result()


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_so_many_programs_are_always_under_way(at_once):
    sandbox = Counting()
    seconds = measure.time_at(sandbox, PROGRAMS, at_once)
    assert sandbox.most == at_once
    assert sandbox.codes == [program.code for program in PROGRAMS]
    # The first ones are not counted, nor those beside which fewer were under way.
    assert 1 <= len(seconds) <= len(PROGRAMS) - at_once
    assert min(seconds) >= 0.005


def test_a_program_without_a_picture_stops_the_measurement():
    with pytest.raises(RunFailed, match=f"program {PROGRAMS[0].name} made no picture \\(failed\\): it said nothing"):
        measure.time_alone(Counting(pictures=()), PROGRAMS, 0.0)


def test_programs_alone_are_timed_after_a_pause(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert len(measure.time_alone(Counting(), PROGRAMS[:3], 7.0)) == 3
    assert slept == [7.0, 7.0, 7.0]


def test_the_command_writes_a_table_that_the_driver_and_the_simulator_take(rungs, tmp_path, monkeypatch, capsys):
    if not rungs.present:
        pytest.skip(f"no rung: {rungs.lacking}")
    monkeypatch.setattr(measure, "ALONE", 1)
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(measure, "Sandbox", make_sandbox)
    out = tmp_path / "table.json"
    assert measure.main(["--samples", "2", "--seats", "2", "--rung", rungs.present[0], "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "programs from the library, seed 0" in said
    assert f"rung {rungs.present[0]}\n" in said
    assert f"written to {out}\n" in said
    table = load_table(out, model=CODE_RUNNER)
    assert table["execute"].batch == (1, 2)
    assert table.origin == "measured"
    assert table.info["cold_seconds"] > 0
    assert tool_stage(EXECUTE, table, 2.5).alone(1, 1) == table["execute"].at(1)
    driver = ToolDriver(rungs[rungs.present[0]], table=table)
    assert driver.seconds.expect(2) == table["execute"].at(2)


def test_without_a_wall_the_command_says_so_in_one_line(monkeypatch, capsys):
    def refuse(*_, **__):
        raise SandboxRefused("no program is run, no wall holds here: bwrap: …")

    monkeypatch.setattr(measure, "Sandbox", refuse)
    assert measure.main(["--samples", "2"]) == 1
    assert capsys.readouterr().err == (
        "python -m agent_plugin.tools.measure: no program is run, no wall holds here: bwrap: …\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seats", "0"], "must be at least 1, got 0"),
        (["--samples", "1"], "must be at least 2, got 1"),
        (["--rung", "docker"], "invalid choice: 'docker'"),
        (["--out", "/tmp"], "--out is a folder, expected a file: /tmp"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message):
    command = [sys.executable, "-m", "agent_plugin.tools.measure", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
