"""The command `neustream`: it finds the commands that packages add, and gives them its arguments."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from neustream.cli import main as command

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS: dict[str, str] = PROJECT["entry-points"][command.GROUP]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with what an installation of this checkout says of itself, to stand first on the path."""
    folder = tmp_path / "neustream-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: neustream\nVersion: 9\n")
    lines = [f"[{command.GROUP}]", *(f"{name} = {value}" for name, value in COMMANDS.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    return tmp_path


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, "-m", "neustream.cli.main", *arguments],
        env=environment,
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_called_without_arguments_and_is_described(name: str) -> None:
    entry = EntryPoint(name, COMMANDS[name], command.GROUP)
    parameters = inspect.signature(entry.load()).parameters.values()
    assert all(parameter.default is not parameter.empty for parameter in parameters)
    assert 20 < len(command.summary(entry)) < 110


def test_the_script_is_this_main() -> None:
    entry = EntryPoint("neustream", PROJECT["scripts"]["neustream"], "console_scripts")
    assert entry.load() is command.main


def test_help_lists_each_command_in_a_line(installed: Path) -> None:
    result = run(installed, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")]
    assert lines == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_calls_itself_what_the_user_typed(installed: Path, name: str) -> None:
    result = run(installed, name, "--no-such-flag")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"neustream {name}: ")


def test_a_command_gets_its_arguments_and_gives_its_exit_code(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "estimate", "--model", "opt-13b", "--device", "a6000", "--out", str(tmp_path / "my tables"))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.glob("my tables/a6000/opt-13b.estimated.json"))
    refused = run(installed, "estimate", "--model", "opt-13b", "--device", "abacus")
    assert refused.returncode == 2
    assert refused.stderr.startswith("neustream estimate: unknown device 'abacus'")


@pytest.mark.parametrize(
    ("arguments", "words"), [((), "name a command"), (("serve-tea",), "unknown command 'serve-tea'")]
)
def test_what_is_no_command_is_refused_in_one_line(installed: Path, arguments: tuple[str, ...], words: str) -> None:
    result = run(installed, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"neustream: {words}; there are {', '.join(sorted(COMMANDS))}\n"


def fake_entry_points(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> None:
    monkeypatch.setattr(command, "entry_points", lambda group: [entry for entry in entries if entry.group == group])


def test_nothing_installed_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_entry_points(monkeypatch)
    assert command.main(["profile"]) == 2
    assert capsys.readouterr().err == "neustream: no commands are installed; `bash install.sh` installs them\n"


def test_a_command_whose_module_is_gone_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["neustream"])
    fake_entry_points(monkeypatch, EntryPoint("old", "neusim.moved_away:main", command.GROUP))
    assert command.main(["old"]) == 2
    assert capsys.readouterr().err.startswith("neustream: old cannot be loaded: No module named 'neusim.moved_away'")
    assert command.main(["--help"]) == 0
    assert "  old        is not there" in capsys.readouterr().out


def test_a_command_of_another_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["neustream"])
    fake_entry_points(monkeypatch, EntryPoint("size", "os:cpu_count", command.GROUP))
    assert command.main(["size", "--flag"]) == os.cpu_count()
    assert sys.argv == ["neustream size", "--flag"]
