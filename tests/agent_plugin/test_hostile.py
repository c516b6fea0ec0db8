"""Hostile programs on every rung: none gets out, each ends within its limits, none leaves a process or a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from agent_plugin.sandbox.cgroups import BESIDE
from agent_plugin.sandbox.jobs import PREFIX
from agent_plugin.sandbox.planted import Planted
from agent_plugin.sandbox.probes import ATTEMPTS, FLOODS, attempts, flood
from agent_plugin.sandbox.selftest import LIMITS, RUNGS, SHORT, descendants

ENDS = {
    "endless_loop": {"timed_out"},
    "sleep": {"timed_out"},
    "ignore_signals": {"timed_out"},
    "stop_itself": {"timed_out"},
    "close_everything": {"timed_out"},
    "fork_bomb": {"timed_out"},
    "daemon": {"failed"},
    "thread_bomb": {"timed_out", "out_of_memory", "failed"},
    "thread_that_stays": {"timed_out", "failed"},
    "memory_bomb": {"out_of_memory", "timed_out"},
    "shared_memory_bomb": {"out_of_memory", "failed", "timed_out"},
    "recursion": {"killed", "out_of_memory", "failed", "timed_out"},
    "one_big_file": {"failed"},
    "disk_flood": {"too_much_disk", "too_many_files"},
    "disk_flood_elsewhere": {"too_much_disk", "too_many_files"},
    "many_files": {"too_many_files"},
    "deep_folders": {"too_many_files"},
    "closed_folders": {"too_many_files"},
    "output_flood": {"too_much_output"},
    "error_flood": {"too_much_output"},
    "descriptor_flood": {"failed"},
    "crash": {"killed"},
    "old_instructions": {"killed"},
    "x32_call": {"killed"},
}
"""How each program that tries to use up the machine may end; a busy machine may let the time run out first."""
X86_ONLY = ("old_instructions", "x32_call")


def job_folders():
    """The folders of jobs that are there now, by the process that works in them."""
    return {path for base in Path(tempfile.gettempdir()).glob(PREFIX + "*") for path in base.iterdir() if path.is_dir()}


@pytest.fixture(scope="module")
def attempted(sandboxes):
    """Every attempt on every rung, each a program of its own, all against the same victim: `(result, planted)`."""
    with Planted() as planted:
        futures = {
            (rung, name): sandbox.submit(attempts(module, planted.values, name))
            for rung, sandbox in sandboxes.items()
            if sandbox is not None
            for name, module in ATTEMPTS.items()
        }
        results = {key: future.result() for key, future in futures.items()}
        yield results, planted
        assert planted.harm() == []


@pytest.fixture(scope="module")
def flooded(sandboxes):
    """What became of every program that tries to use up the machine, on every rung."""
    return {
        (rung, name): future.result()
        for rung, sandbox in sandboxes.items()
        if sandbox is not None
        for name, future in [
            (name, sandbox.submit(flood(name), wall=SHORT if ENDS[name] == {"timed_out"} else 5.0)) for name in FLOODS
        ]
    }


def test_there_are_many_hostile_programs():
    assert len(ATTEMPTS) + len(FLOODS) >= 25
    assert set(ENDS) == set(FLOODS)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_gets_nowhere(sandboxes, attempted, rung, name):
    results, planted = attempted
    if sandboxes[rung] is None:
        return  # the fixture has shown that it is refused
    result = results[rung, name]
    assert result.stdout.split()[-3:-1] == ["contained", name], result
    assert not planted.is_told(result.stdout + result.stderr)
    assert (result.reason, result.exit_status, result.rung) == ("ok", 0, rung)


@pytest.mark.parametrize("rung", RUNGS)
def test_attempts_together_do_no_harm(sandboxes, attempted, rung):
    assert attempted[1].harm() == []


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", FLOODS)
def test_a_program_that_would_use_up_the_machine_is_ended(sandboxes, flooded, rung, name):
    if sandboxes[rung] is None or (name in X86_ONLY and os.uname().machine != "x86_64"):
        return
    result = flooded[rung, name]
    assert result.reason in ENDS[name], result
    assert "ESCAPED" not in result.stdout
    assert len(result.stdout) + len(result.stderr) <= LIMITS.output
    if name == "thread_bomb" and result.stdout:
        assert int(result.stdout.split()[0]) < LIMITS.threads + BESIDE  # a control group counts the sandbox's own too


@pytest.mark.parametrize("rung", RUNGS)
def test_nothing_is_left_of_them(sandboxes, attempted, flooded, rung):
    sandbox = sandboxes[rung]
    if sandbox is None:
        return
    sandbox.run("pass")  # whatever came before has ended
    mine = descendants(sandbox.keeper_pid)
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in mine if Path(f"/proc/{pid}").exists()]
    strangers = [command for command in commands if command and b"agent_plugin.sandbox" not in command]
    assert strangers == []
    assert len(job_folders()) <= 2 * (sandbox.seats + 2)  # those of interpreters that wait, of both sandboxes


def test_a_program_cannot_see_what_the_one_before_it_left(held):
    if held is None:
        return
    held.run("open('mine', 'w').write('x'); import os; open(os.environ['TMPDIR'] + '/mine', 'w').write('x')")
    after = held.run("import os; print(os.listdir('.'), os.listdir(os.environ['TMPDIR']))")
    assert after.stdout == "['program.py'] []\n"


def test_the_callers_environment_reaches_no_program(held, monkeypatch):
    if held is None:
        return
    monkeypatch.setenv("NEUSTREAM_SECRET", "swordfish")
    result = held.run("import os; print(dict(os.environ))")
    assert "swordfish" not in result.stdout
    assert "MPLBACKEND" in result.stdout


def test_the_callers_environment_does_not_reach_the_keeper_either(held):
    if held is None:
        return
    environment = Path(f"/proc/{held.keeper_pid}/environ").read_bytes()
    assert {item.split(b"=")[0] for item in environment.split(b"\0") if item} <= {b"PATH", b"LANG"}
