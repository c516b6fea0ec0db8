"""Whoever dies, nothing stays: the process that uses the sandbox, the keeper, or both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox_helpers import groups_of, is_gone, make_sandbox, wait_until

from agent_plugin.sandbox.client import SandboxRefused
from agent_plugin.sandbox.strays import processes_of

USER = """
import sys, time
from sandbox_helpers import make_sandbox
sandbox = make_sandbox({rung!r}, seats=2, folder={folder!r})
for _ in range(3):
    sandbox.submit({program!r})
print(sandbox.keeper_pid, flush=True)
time.sleep(1000)
"""
PROGRAM = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
open("started", "w").close()
while True:
    pass
"""


@pytest.fixture
def user(rung, tmp_path):
    """A process that runs two programs without an end, a third one waiting: `(process, keeper's pid, folder)`."""
    code = USER.format(rung=rung, folder=str(tmp_path), program=PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"},
    )
    try:
        keeper = int(process.stdout.readline())
        wait_until(lambda: len([*tmp_path.glob("*/*/job/started")]) == 2, "both programs run")
        yield process, keeper, tmp_path
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_user_that_is_killed_leaves_no_process_and_no_file(user):
    process, keeper, folder = user
    assert len(processes_of(keeper)) >= 2
    process.kill()
    process.wait()
    wait_until(lambda: is_gone(keeper), "no process and no control group is left")
    wait_until(lambda: not [*folder.iterdir()], "no file is left")


def test_a_keeper_that_is_asked_to_end_leaves_nothing(user):
    _, keeper, folder = user
    os.kill(keeper, signal.SIGTERM)
    wait_until(lambda: is_gone(keeper), "no process and no control group is left")
    wait_until(lambda: not [*folder.iterdir()], "no file is left")


def test_a_keeper_that_is_killed_leaves_no_process_and_the_next_one_removes_its_files(user, rung):
    _, keeper, folder = user
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: not processes_of(keeper), "no process is left")
    before = [*folder.iterdir()]
    with make_sandbox(rung, folder=str(folder)) as sandbox:
        assert sandbox.run("print(1)").stdout == "1\n"
        assert not [path for path in before if path.exists()]
        assert not groups_of(keeper)
    assert [*folder.iterdir()] == []


def test_a_keeper_that_is_killed_fails_what_was_asked_of_it(rung, tmp_path):
    with make_sandbox(rung, folder=str(tmp_path)) as sandbox:
        running, waiting = sandbox.submit(PROGRAM), sandbox.submit("pass")
        wait_until(lambda: [*tmp_path.glob("*/*/job/started")], "the program runs")
        os.kill(sandbox.keeper_pid, signal.SIGKILL)
        for future in (running, waiting, sandbox.submit("pass")):
            with pytest.raises(SandboxRefused, match="the keeper of the sandbox has ended"):
                future.result()


def test_closing_ends_what_runs(rung, tmp_path):
    sandbox = make_sandbox(rung, folder=str(tmp_path))
    running = sandbox.submit(PROGRAM)
    wait_until(lambda: [*tmp_path.glob("*/*/job/started")], "the program runs")
    sandbox.close()
    assert is_gone(sandbox.keeper_pid)
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(SandboxRefused):
        running.result()
