"""A machine made of stand-ins, on which install.sh runs all its stages in a moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL_TOOLS = """
    awk bash cat comm cp cut dirname env flock grep ls mkdir mktemp mv nproc paste realpath rm sed sh sha256sum
    sleep sort tail touch
"""


def _heed_signals() -> None:
    """A shell in the background ignores Ctrl-C, one under nohup a hang-up, and so would all that they start."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Machine:
    """A copy of the files that install.sh reads, and a PATH that holds nothing but known tools and stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.repo = folder / "repo"
        self.bin = folder / "bin"
        self.calls_file = folder / "calls"
        self.venv = self.repo / ".venv"
        self.bin.mkdir(parents=True)
        self.calls_file.touch()
        for name in ("constraints", "patches"):
            shutil.copytree(ROOT / name, self.repo / name)
        for name in ("install.sh", "requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.repo / name)
        for name in REAL_TOOLS.split():
            tool = shutil.which(name)
            assert tool is not None, name
            (self.bin / name).symlink_to(tool)
        self.fake("python3.11", (ROOT / "tests/install/fake_python.sh").read_text())
        self.fake("uname", "case $1 in -s) echo Linux;; -m) echo x86_64;; esac")
        self.fake("lscpu", "echo Flags: sse avx avx2 avx512f fma")
        self.fake("id", "echo 1000")
        self.fake("df", "echo header; echo /dev/disk 100000 1 99999 1% /")
        self.fake("git", "exit 0")
        self.fake("g++", "exit 0")
        self.fake("bwrap", "exit 0")

    def fake(self, name: str, script: str) -> None:
        """Put a tool on the PATH that runs this line of shell."""
        tool = self.bin / name
        tool.unlink(missing_ok=True)
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)

    def lacks(self, *names: str) -> None:
        """Take tools off the PATH."""
        for name in names:
            (self.bin / name).unlink()

    def start(self, arguments: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
        """Start install.sh in a process group of its own."""
        return subprocess.Popen(
            ["bash", "install.sh", *arguments],
            cwd=self.repo,
            env={"PATH": str(self.bin), "CALLS": str(self.calls_file), "HOME": os.devnull, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_heed_signals,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run install.sh to its end."""
        process = self.start(arguments, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @property
    def pins(self) -> list[str]:
        """The lines of the file from which pip installed last."""
        return self.calls_file.with_name("calls.pins").read_text().splitlines()

    def take_calls(self) -> list[str]:
        """What Python and the package managers were asked to do since the last time."""
        calls = self.calls_file.read_text().splitlines()
        self.calls_file.write_text("")
        return calls


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine on which everything that install.sh needs is in place."""
    return Machine(tmp_path)
