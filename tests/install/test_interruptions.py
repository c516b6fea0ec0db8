"""install.sh survives signals, and other runs of itself."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import Machine
from .test_stages import APPLY, COMPILE, INSTALL, PACKAGES, PROJECT, venv


def wait_for_call(machine: Machine, process: subprocess.Popen[str], call: str) -> None:
    while call not in machine.calls_file.read_text().splitlines():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("during", "again"),
    [
        ("pip install pins", [*PACKAGES, *PROJECT, *COMPILE, *INSTALL, *APPLY]),
        ("pip wheel", [*COMPILE, *INSTALL, *APPLY]),
        ("pip install vllm wheel", [*INSTALL, *APPLY]),
        ("-m vllm_patch apply", APPLY),
    ],
)
def test_interrupted_run_is_taken_up_where_it_was(machine: Machine, during: str, again: list[str]) -> None:
    process = machine.start(HANG=during)
    wait_for_call(machine, process, during)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "install.sh: interrupted; run it again to go on from here"
    assert list((machine.repo / ".cache").glob("tmp.*")) == []
    machine.take_calls()
    assert machine.run().returncode == 0
    # What pip was interrupted in cannot be trusted, so there the environment starts from nothing.
    start = venv(machine) if during == "pip install pins" else []
    assert machine.take_calls() == [*start, *again]


@pytest.mark.parametrize(("place", "what"), [(".cache/install.lock", ".cache"), (".venv/.neustream/lock", ".venv")])
def test_second_run_waits_for_the_first_and_says_so(machine: Machine, place: str, what: str) -> None:
    file = machine.repo / place
    file.parent.mkdir(parents=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = machine.start()
        assert process.stderr is not None
        assert process.stderr.readline() == (
            f"install.sh: another install.sh is at work on {machine.repo / what}; waiting for it to end\n"
        )
        assert machine.take_calls() == []
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_two_clones_build_one_environment_one_after_the_other(machine: Machine, tmp_path: Path) -> None:
    first = machine.start(HANG="pip install pins")
    wait_for_call(machine, first, "pip install pins")
    machine.take_calls()
    clone = shutil.copytree(machine.repo, tmp_path / "clone", ignore=shutil.ignore_patterns(".cache", ".venv"))
    machine.repo, venv = clone, machine.venv
    second = machine.start(["--venv", str(venv)])
    assert second.stderr is not None
    assert second.stderr.readline() == (f"install.sh: another install.sh is at work on {venv}; waiting for it to end\n")
    assert machine.take_calls() == []
    os.killpg(first.pid, signal.SIGINT)
    first.communicate(timeout=60)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    # The lock outlives the environment that is built anew, so a third would wait for the second.
    assert machine.take_calls() == [f"-m venv {venv}", *PACKAGES, *PROJECT, *COMPILE, *INSTALL, *APPLY]
    assert (venv / ".neustream/lock").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_to_the_script_alone_ends_the_stage_at_once(machine: Machine, number: int, code: int) -> None:
    downloads = machine.repo / "my downloads"
    downloads.mkdir()
    process = machine.start(HANG="pip wheel", TMPDIR=str(downloads))
    wait_for_call(machine, process, "pip wheel")
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=15)  # the stage would take 20 s
    assert list(downloads.iterdir()) == []
    assert process.returncode == code
    assert err.splitlines()[-1] == "install.sh: interrupted; run it again to go on from here"
    assert list((machine.repo / ".cache").glob("tmp.*")) == []
