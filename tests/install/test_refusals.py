"""install.sh refuses what it cannot do with one line and exit code 2, before it downloads or writes anything."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from .conftest import ROOT, Machine


def refusal(machine: Machine, *arguments: str, **environment: str) -> str:
    """The one line with which it refused."""
    result = machine.run(*arguments, **environment)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert machine.take_calls() == []
    assert not (machine.repo / ".cache").exists()
    (line,) = result.stderr.splitlines()
    return line


def test_help_names_every_option(machine: Machine) -> None:
    result = machine.run("--help")
    assert result.returncode == 0
    assert result.stderr == ""
    for option in ("--cpu", "--cuda", "--venv DIR", "--help"):
        assert option in result.stdout


def test_help_knows_every_flag_that_the_pages_use(machine: Machine) -> None:
    known = set(re.findall(r"--[a-z]+", machine.run("--help").stdout))
    used = {
        flag
        for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
        for arguments in re.findall(r"install\.sh((?: --[a-z]+(?: [A-Z]+)?)+)", page.read_text())
        for flag in arguments.split()
        if flag.startswith("--")
    }
    assert {"--cuda", "--help"} <= used <= known


def test_unknown_argument(machine: Machine) -> None:
    assert refusal(machine, "--gpu") == (
        "install.sh: unknown argument '--gpu'; known are --engine E --cpu --cuda --venv DIR --help"
    )


def test_two_targets(machine: Machine) -> None:
    assert refusal(machine, "--cpu", "--cuda") == "install.sh: --cpu and --cuda exclude each other"


def test_venv_without_a_folder(machine: Machine) -> None:
    assert refusal(machine, "--venv") == "install.sh: --venv needs a folder"


def test_another_system(machine: Machine) -> None:
    machine.fake("uname", "echo Darwin")
    assert refusal(machine) == "install.sh: needs Linux, this is Darwin"


def test_another_processor(machine: Machine) -> None:
    machine.fake("uname", "case $1 in -s) echo Linux;; -m) echo aarch64;; esac")
    assert refusal(machine) == "install.sh: needs an x86_64 processor, this is aarch64"


def test_flags_of_the_processor_are_read_without_lscpu_too(machine: Machine) -> None:
    machine.lacks("lscpu")
    machine.fake("cat", f'[ "$1" != /proc/cpuinfo ] && exec {shutil.which("cat")} "$@"; echo flags : sse avx2 fma')
    assert machine.run().returncode == 0
    assert "-avx2\n" in (machine.venv / ".neustream/vllm").read_text()
    machine.fake("cat", f'[ "$1" != /proc/cpuinfo ] && exec {shutil.which("cat")} "$@"; echo flags : sse')
    result = machine.run("--venv", "other")
    assert result.returncode == 2
    assert result.stderr == "install.sh: this processor has neither AVX2 nor AVX-512\n"


def test_processor_without_avx2_cannot_run_the_cpu_build(machine: Machine) -> None:
    machine.fake("lscpu", "echo Flags: sse avx fma")
    assert refusal(machine) == "install.sh: this processor has neither AVX2 nor AVX-512"


@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_another_python(machine: Machine, version: str) -> None:
    python = machine.bin / "python3.11"
    python.rename(machine.bin / "python3")
    line = refusal(machine, FAKE_VERSION=version)
    assert line == f"install.sh: needs Python 3.11; found: {version} ({machine.bin}/python3)"


def test_no_python(machine: Machine) -> None:
    machine.lacks("python3.11")
    assert refusal(machine) == "install.sh: needs Python 3.11; found: no Python at all"


def test_a_python_whose_path_has_spaces(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "my tools"
    folder.mkdir()
    (machine.bin / "python3.11").rename(folder / "python3.11")
    result = machine.run(PATH=f"{folder}:{machine.bin}")
    assert result.returncode == 0, result.stderr
    assert f"for cpu with {folder}/python3.11\n" in result.stderr


def test_python3_will_do_if_it_is_3_11(machine: Machine) -> None:
    (machine.bin / "python3.11").rename(machine.bin / "python3")
    assert machine.run().returncode == 0


def test_missing_system_packages_are_named_to_who_may_not_install_them(machine: Machine) -> None:
    machine.lacks("git")
    machine.fake("g++", "exit 1")
    machine.fake("apt-get", 'echo "apt-get $*" >>"$CALLS"')
    assert refusal(machine, LACKS_VENV="1") == (
        "install.sh: missing on this system: git python3.11-venv libnuma-dev python3.11-dev; "
        "on Debian or Ubuntu: sudo apt-get install git python3.11-venv libnuma-dev python3.11-dev"
    )


def test_missing_compiler_is_named(machine: Machine) -> None:
    machine.lacks("g++")
    line = refusal(machine)
    assert line.startswith("install.sh: missing on this system: g++")


def test_a_compiler_is_no_matter_to_cuda(machine: Machine) -> None:
    machine.lacks("g++")
    assert machine.run("--cuda").returncode == 0


def test_root_without_apt_is_told_too(machine: Machine) -> None:
    machine.fake("id", "echo 0")
    machine.lacks("git")
    assert refusal(machine).startswith("install.sh: missing on this system: git;")


def test_a_full_disk(machine: Machine) -> None:
    machine.fake("df", "echo header; echo /dev/disk 100000 1 3900 1% /")
    folders = [machine.venv, machine.repo / ".cache", "/tmp", machine.repo / "pip cache"]
    assert refusal(machine, PIP_CACHE_DIR=str(folders[-1])) == (
        f"install.sh: needs 4400 MB free on / for {', '.join(map(str, folders))}; only 3900 MB are"
    )


@pytest.mark.parametrize("variable", ["TMPDIR", "PIP_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_disk_of_its_own_that_pip_downloads_to_is_looked_at_too(machine: Machine, variable: str) -> None:
    small = machine.repo / "small disk"
    small.mkdir()
    mount = f'case $3 in "{small}") echo tmpfs 900 1 700 1% /small;; *) echo /dev/disk 100000 1 99999 1% /;; esac'
    machine.fake("df", f"echo header; {mount}")
    folder = f"{small}/pip" if variable == "XDG_CACHE_HOME" else small
    assert refusal(machine, **{variable: str(small)}) == (
        f"install.sh: needs 800 MB free on /small for {folder}; only 700 MB are"
    )


def test_a_folder_for_temporary_files_that_is_not_there(machine: Machine) -> None:
    result = machine.run(TMPDIR=str(machine.repo / "nowhere"))
    assert result.returncode == 2
    assert result.stderr == f"install.sh: cannot write to {machine.repo}/nowhere (TMPDIR)\n"
    assert machine.take_calls() == []
    assert list((machine.repo / ".cache").glob("tmp.*")) == []


def test_a_cache_that_pip_does_not_keep_takes_no_disk(machine: Machine) -> None:
    machine.fake("df", "echo header; echo /dev/disk 100000 1 3900 1% /")
    assert machine.run(PIP_NO_CACHE_DIR="1", PIP_CACHE_DIR=str(machine.repo)).returncode == 0


def test_a_folder_that_somebody_else_made_is_left_alone(machine: Machine) -> None:
    machine.venv.mkdir()
    (machine.venv / "precious").touch()
    line = refusal(machine)
    assert line.startswith(f"install.sh: {machine.venv} was not made by install.sh")
    assert (machine.venv / "precious").exists()
