"""Hostile programs on every rung: none gets out, each ends within its limits, none leaves a process or a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sandbox_helpers import is_gone, make_sandbox, wait_until

from agent_plugin.sandbox.cgroups import BESIDE
from agent_plugin.sandbox.planted import Planted
from agent_plugin.sandbox.pool import Sandbox
from agent_plugin.sandbox.probes import ATTEMPTS, FLOODS, attempts, flood
from agent_plugin.sandbox.selftest import LIMITS, SHORT

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
    "memory_bomb": {"out_of_memory"},
    "shared_memory_bomb": {"out_of_memory", "failed"},
    "recursion": {"killed", "out_of_memory", "out_of_cpu", "failed"},
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
"""How each program that tries to use up the machine may end."""
HARD_TO_END = (
    "ignore_signals",
    "stop_itself",
    "close_everything",
    "fork_bomb",
    "daemon",
    "thread_bomb",
    "deep_folders",
)
X86_ONLY = ("old_instructions", "x32_call")


@pytest.fixture(scope="module")
def attempted(rungs):
    """Every attempt on every rung, each a program of its own, all against the same victim: `(results, planted)`."""
    with Planted() as planted:
        futures = {
            (rung, name): rungs[rung].submit(attempts(module, planted.values, name))
            for rung in rungs.present
            for name, module in ATTEMPTS.items()
        }
        results = {key: future.result() for key, future in futures.items()}
        yield results, planted
        assert planted.harm() == []


@pytest.fixture(scope="module")
def flooded(rungs):
    """What became of every program that tries to use up the machine, on every rung."""
    futures = {
        (rung, name): rungs[rung].submit(flood(name), wall=SHORT if "timed_out" in ENDS[name] else None)
        for rung in rungs.present
        for name in FLOODS
    }
    return {key: future.result() for key, future in futures.items()}


def test_there_are_many_hostile_programs():
    assert len(ATTEMPTS) + len(FLOODS) >= 25
    assert set(ENDS) == set(FLOODS)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_gets_nowhere(rung, attempted, name):
    results, planted = attempted
    result = results[rung, name]
    assert result.stdout.split()[-3:-1] == ["contained", name], result
    assert not planted.is_told(result.stdout + result.stderr)
    assert (result.reason, result.exit_status, result.rung) == ("ok", 0, rung)


def test_attempts_together_do_no_harm(attempted):
    assert attempted[1].harm() == []


@pytest.mark.parametrize("name", FLOODS)
def test_a_program_that_would_use_up_the_machine_is_ended(rung, flooded, name):
    if name in X86_ONLY and os.uname().machine != "x86_64":
        pytest.skip("the door that this program tries is one of x86_64 alone")
    result = flooded[rung, name]
    assert result.reason in ENDS[name], result
    assert "ESCAPED" not in result.stdout
    assert len(result.stdout) + len(result.stderr) <= LIMITS.output
    if name == "thread_bomb" and result.stdout:
        assert int(result.stdout.split()[0]) < LIMITS.threads + BESIDE  # a control group counts the sandbox's own too


def test_attempts_do_get_through_where_nothing_walls_them_in():
    """Or they would show nothing."""
    harmless = ("list_the_system", "read_planted_secret", "append_outside", "tcp_connect", "fork", "kill_victim")
    with Planted() as planted, Sandbox("none", seats=2, warm=1, limits=LIMITS, preload=False) as open_one:
        futures = [open_one.submit(attempts(ATTEMPTS[name], planted.values, name)) for name in harmless]
        results = [future.result() for future in futures]
        wait_until(lambda: len(planted.harm()) >= 2, "the victim is dead, the file changed")
    assert all(f"ESCAPED {name}" in result.stdout for name, result in zip(harmless, results, strict=True)), results
    assert planted.is_told(results[1].stdout)


def test_nothing_is_left_of_hostile_programs(rung, tmp_path):
    with make_sandbox(rung, seats=4, folder=str(tmp_path)) as sandbox:
        futures = [sandbox.submit(flood(name), wall=SHORT) for name in HARD_TO_END]
        reasons = {name: future.result().reason for name, future in zip(HARD_TO_END, futures, strict=True)}
        assert "ok" not in reasons.values(), reasons
        assert len([*tmp_path.glob("*/*/job")]) <= sandbox.seats + 1 + 1  # those that wait, one may be on its way out
    assert [*tmp_path.iterdir()] == []
    assert is_gone(sandbox.keeper_pid)


def test_a_program_cannot_see_what_the_one_before_it_left(held):
    look = "import os; print(os.listdir('.'), os.listdir(os.environ['TMPDIR']))"
    before = held.run(look)  # a checkout under the temporary folder is mounted there
    held.run("open('mine', 'w').write('x'); import os; open(os.environ['TMPDIR'] + '/mine', 'w').write('x')")
    assert before.stdout.startswith("['program.py'] [")
    assert "mine" not in before.stdout
    assert held.run(look).stdout == before.stdout


def test_the_callers_environment_reaches_no_program(held, monkeypatch):
    monkeypatch.setenv("NEUSTREAM_SECRET", "swordfish")
    result = held.run("import os; print(dict(os.environ))")
    assert "swordfish" not in result.stdout
    assert "MPLBACKEND" in result.stdout


def test_the_callers_environment_does_not_reach_the_keeper_either(held):
    environment = Path(f"/proc/{held.keeper_pid}/environ").read_bytes()
    assert {item.split(b"=")[0] for item in environment.split(b"\0") if item} <= {b"PATH", b"LANG"}
