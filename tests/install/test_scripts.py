"""Scripts that are started by path: with any Python they find the checkout's code and the environment, or say so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    "neusim/profile.py",
    "neusim/simulate.py",
    "neusim/estimate.py",
    "neusim/validate.py",
    "bench/decision_cost.py",
    "bench/diffusion_step.py",
    "exp/compare.py",
]
MODULES = ["neusim.simulate", "exp.llm", "exp.diffusion", "exp.figures", "exp.compare"]
PACKAGES = ("neustream", "neusim", "diffusion_plugin", "exp", "vllm_patch", "bench")


def make_environment(folder: Path, *, is_complete: bool = False) -> Path:
    """A virtual environment with no packages, or with those of the tests' own; returns its Python."""
    venv.create(folder, symlinks=True)
    if is_complete:
        site_packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (site_packages / "all.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the standard library alone, as in a plain shell."""
    return make_environment(tmp_path_factory.mktemp("plain") / "bare")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout without an environment, at a path with spaces."""
    root = tmp_path / "my clone"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "tables"))
    return root


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**plain, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_plain_python_goes_on_with_that_of_the_environment(clone: Path, bare: Path, script: str) -> None:
    make_environment(clone / ".venv", is_complete=True)
    result = run(bare, script, "--help", cwd=clone)
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: " in result.stdout


@pytest.mark.parametrize("module", MODULES)
def test_programs_that_are_started_as_modules_go_on_too(clone: Path, bare: Path, module: str) -> None:
    make_environment(clone / ".venv", is_complete=True)
    result = run(bare, "-m", module, "--help", cwd=clone)
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: " in result.stdout


@pytest.mark.parametrize("module", MODULES)
def test_modules_without_an_environment_say_how_to_make_it(clone: Path, bare: Path, module: str) -> None:
    result = run(bare, "-m", module, "--help", cwd=clone)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    name = f"{module.partition('.')[2]}.py" if module in ("exp.compare", "neusim.simulate") else module
    assert line.startswith(f"{name}: {bare} has no module ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_an_environment_one_line_says_how_to_make_it(clone: Path, bare: Path, script: str) -> None:
    result = run(bare, clone / script, "--help", cwd=clone.parent)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{Path(script).name}: {bare} has no module ")
    assert line.endswith(f"; `bash '{clone}/install.sh'` makes an environment for it")


def test_arguments_arrive_as_they_were(clone: Path, bare: Path) -> None:
    make_environment(clone / ".venv", is_complete=True)
    result = run(bare, "neusim/estimate.py", "--model", "a b  'c'", "--device", "a6000", cwd=clone)
    assert result.returncode == 2
    assert "a b  'c'" in result.stderr


def test_an_environment_that_lacks_something_is_not_started_twice(clone: Path, bare: Path) -> None:
    python = make_environment(clone / ".venv")
    result = run(bare, "neusim/simulate.py", "--help", cwd=clone)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"simulate.py: {python} has no module ")


def test_a_python_that_leads_back_is_not_started_twice(clone: Path, bare: Path) -> None:
    folder = clone / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text(f"#!/bin/sh\nexec '{bare}' \"$@\"\n")
    (folder / "python").chmod(0o755)
    result = run(bare, "neusim/simulate.py", "--help", cwd=clone)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_an_environment_that_cannot_be_run_is_named(clone: Path, bare: Path) -> None:
    folder = clone / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text("no program\n")
    (folder / "python").chmod(0o755)
    result = run(bare, "neusim/simulate.py", "--help", cwd=clone)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"{folder}/python cannot be run (Exec format error)" in result.stderr


def test_any_python_with_all_that_is_needed_stays(clone: Path) -> None:
    folder = clone / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text("#!/bin/sh\nexit 77\n")
    (folder / "python").chmod(0o755)
    result = run(sys.executable, "neusim/simulate.py", "--help", cwd=clone)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("command", [["neusim/simulate.py"], ["-m", "neusim.simulate"]])
def test_the_checkout_comes_before_packages_of_the_same_name(clone: Path, tmp_path: Path, command: list[str]) -> None:
    for name in ("neustream", "neusim"):
        foreign = tmp_path / "foreign" / name
        foreign.mkdir(parents=True)
        (foreign / "__init__.py").write_text("raise SystemExit('foreign')")
    result = run(sys.executable, *command, "--help", cwd=clone, PYTHONPATH=str(tmp_path / "foreign"))
    assert (result.returncode, result.stderr) == (0, "")


def test_a_missing_part_of_the_checkout_is_no_matter_of_the_environment(clone: Path, bare: Path) -> None:
    make_environment(clone / ".venv", is_complete=True)
    (clone / "neusim" / "sim" / "device.py").unlink()
    result = run(bare, "neusim/simulate.py", "--help", cwd=clone)
    assert result.returncode == 1
    assert result.stderr.endswith("ModuleNotFoundError: No module named 'neusim.sim.device'\n")


SOURCED = Path("exp/environment.sh")
SHELL_SCRIPTS = [path.relative_to(ROOT) for path in sorted(ROOT.glob("exp/**/*.sh")) if path != ROOT / SOURCED]


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=str)
def test_a_shell_script_stays_in_the_users_folder(tmp_path: Path, script: Path) -> None:
    root = tmp_path / "my clone"
    for needed in (script, SOURCED):
        (root / needed).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / needed, root / needed)
    (root / "install.sh").touch()
    (root / ".venv/bin").mkdir(parents=True)
    python = root / ".venv/bin/python"
    python.write_text('#!/bin/sh\npwd\nprintf "%s|" "$@"\n')
    python.chmod(0o755)
    result = run("bash", root / script, "--out", "my runs", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    folder, arguments = result.stdout.splitlines()
    assert folder == str(tmp_path)
    assert arguments.startswith("-m|exp.")
    assert arguments.endswith("|--out|my runs|")


def test_an_older_python_is_told_what_is_needed(clone: Path) -> None:
    script = "import runpy, sys; sys.version_info = (3, 8); runpy.run_path('neusim/simulate.py', None, '__main__')"
    result = run(sys.executable, "-c", script, cwd=clone)
    assert result.returncode == 2
    assert result.stderr.startswith(f"simulate.py: {sys.executable} is older than Python 3.11; `bash ")


@pytest.mark.parametrize("flag", [("--engine", "v1"), ("--engine=v1",), ("--engine", "v0", "--engine", "vllm")])
def test_todays_vllm_leads_to_its_own_environment(clone: Path, bare: Path, flag: tuple[str, ...]) -> None:
    make_environment(clone / ".venv", is_complete=True)
    result = run(bare, clone / "neusim/profile.py", "--help", *flag, cwd=clone)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.endswith(f"; `bash '{clone}/install.sh' --engine v1` makes an environment for it")
    make_environment(clone / ".venv-v1", is_complete=True)
    result = run(bare, clone / "neusim/profile.py", "--help", *flag, cwd=clone)
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "engine"),
    [("--quick", ""), ("--engine v0", ""), ("--engine v1 --quick", "-v1"), ("--quick --engine=v1", "-v1")],
)
def test_the_scripts_take_the_environment_of_their_engine(tmp_path: Path, arguments: str, engine: str) -> None:
    calls = tmp_path / "install.sh"
    calls.write_text('echo "installed $*"')
    script = f'root={tmp_path}; source {ROOT}/exp/environment.sh {arguments}; echo "$python"'
    result = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=True)
    asked = " --engine v1" if engine else ""
    assert result.stdout == f"installed{asked or ' '}\n{tmp_path}/.venv{engine}/bin/python\n"
