"""What install.sh does, in which order, and what it leaves out the next time."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Machine

TORCH = ["pip install --no-deps torch==2.13.0+cpu"]
PACKAGES = [*TORCH, "pip install pins"]
PROJECT = ["pip install project"]
COMPILE = ["unpack vllm==0.5.4", "pip wheel"]
INSTALL = ["pip install vllm wheel"]
APPLY = ["-m vllm_patch apply"]
VERIFY = ["-m vllm_patch verify"]


def venv(machine: Machine) -> list[str]:
    return [f"-m venv {machine.venv}"]


def installed(machine: Machine) -> Machine:
    """The machine after a first run."""
    assert machine.run().returncode == 0
    machine.take_calls()
    return machine


def test_first_run_does_everything_in_order(machine: Machine) -> None:
    result = machine.run()
    assert result.returncode == 0, result.stderr
    assert machine.take_calls() == [*venv(machine), *PACKAGES, *PROJECT, *COMPILE, *INSTALL, *APPLY]
    assert result.stderr.count("    done in ") == 6


def test_second_run_only_checks_the_patches(machine: Machine) -> None:
    result = installed(machine).run()
    assert result.stderr == f"install.sh: nothing to do: {machine.venv} is complete (cpu)\n"
    assert machine.take_calls() == VERIFY


def test_an_empty_folder_is_taken(machine: Machine) -> None:
    machine.venv.mkdir()
    assert machine.run().returncode == 0


def test_reverted_patches_are_applied_again(machine: Machine) -> None:
    installed(machine)
    assert machine.run(FAIL="-m vllm_patch verify").returncode == 0
    assert machine.take_calls() == [*VERIFY, *VERIFY, *APPLY]


def test_changed_patches_go_on_a_fresh_vllm_and_compile_nothing(machine: Machine) -> None:
    installed(machine)
    with (machine.repo / "patches/0001-import-guided-decoding-lazily.patch").open("a") as patch:
        patch.write("\n")
    assert machine.run().returncode == 0
    assert machine.take_calls() == [*INSTALL, *APPLY]
    assert machine.run().returncode == 0
    assert machine.take_calls() == VERIFY


def test_refused_patches_are_told_in_the_tools_own_line(machine: Machine) -> None:
    result = machine.run(FAIL="-m vllm_patch apply", FAIL_WORDS="vllm_patch: changed by somebody: a.py", FAIL_CODE="2")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "vllm_patch: changed by somebody: a.py"


def test_changed_pins_update_in_place_and_remove_what_is_gone(machine: Machine) -> None:
    pins = machine.repo / "constraints/cpu.txt"
    original = pins.read_text()
    pins.write_text(original + "zzz-left-over==1.0 \\\n    --hash=sha256:00\n")
    installed(machine)
    pins.write_text(original)
    assert machine.run().returncode == 0
    assert machine.take_calls() == [*PACKAGES, "pip uninstall zzz-left-over", *APPLY]


def test_another_torch_compiles_vllm_again(machine: Machine) -> None:
    installed(machine)
    pins = machine.repo / "constraints/cpu.txt"
    pins.write_text(pins.read_text().replace("torch==2.13.0", "torch==2.14.0"))
    assert machine.run().returncode == 0
    assert machine.take_calls() == [
        "pip install --no-deps torch==2.14.0+cpu", "pip install pins", *COMPILE, *INSTALL, *APPLY
    ]  # fmt: skip


def test_another_processor_compiles_vllm_again(machine: Machine) -> None:
    installed(machine)
    machine.fake("lscpu", "echo Flags: avx2")
    assert machine.run().returncode == 0
    assert machine.take_calls() == [*COMPILE, *INSTALL, *APPLY]


def test_a_second_environment_takes_the_kept_wheel(machine: Machine) -> None:
    installed(machine)
    other = machine.repo / "other"
    assert machine.run("--venv", "other").returncode == 0
    assert machine.take_calls() == [f"-m venv {other}", *PACKAGES, *PROJECT, *INSTALL, *APPLY]


def test_cuda_installs_wheels_and_compiles_nothing(machine: Machine) -> None:
    assert machine.run("--cuda").returncode == 0
    assert machine.take_calls() == [
        *venv(machine),
        "pip install pins",
        *PROJECT,
        "pip install pins",
        *APPLY,
    ]
    assert machine.pins[0] == "vllm==0.5.4 \\"


def test_a_visible_gpu_makes_cuda_the_default(machine: Machine) -> None:
    machine.fake("nvidia-smi", "echo GPU 0: NVIDIA H100")
    assert machine.run().returncode == 0
    assert "pip wheel" not in machine.take_calls()


def test_a_driver_without_gpus_does_not(machine: Machine) -> None:
    machine.fake("nvidia-smi", "echo No devices found; exit 6")
    assert machine.run().returncode == 0
    assert "pip wheel" in machine.take_calls()


def test_the_target_of_an_environment_is_remembered(machine: Machine) -> None:
    machine.fake("nvidia-smi", "echo GPU 0: NVIDIA H100")
    assert machine.run("--cpu").returncode == 0
    machine.take_calls()
    assert machine.run().returncode == 0
    assert machine.take_calls() == VERIFY


def test_asking_for_the_other_target_builds_anew(machine: Machine) -> None:
    installed(machine)
    assert machine.run("--cuda").returncode == 0
    assert machine.take_calls()[0] == venv(machine)[0]


def test_no_cpu_build_of_torch_says_where_to_name_one(machine: Machine) -> None:
    words = "ERROR: Could not find a version that satisfies torch==2.13.0+cpu (from versions: 2.12.0, 2.13.0)"
    result = machine.run(FAIL=TORCH[0], FAIL_WORDS=words)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "install.sh: pip's sources have no CPU build of PyTorch 2.13.0: "
        "name an index or folder that has it in PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
    )
    assert machine.take_calls() == [*venv(machine), *TORCH]


def test_a_network_that_fails_is_not_mistaken_for_a_missing_build(machine: Machine) -> None:
    result = machine.run(FAIL=TORCH[0], FAIL_WORDS="ERROR: ... (from versions: none)", FAIL_CODE="2")
    assert result.returncode == 1
    assert "(from versions: none)\n" in result.stderr
    assert "failed: Python packages" in result.stderr.splitlines()[-1]


def test_failure_shows_the_end_of_the_log(machine: Machine) -> None:
    result = machine.run(FAIL="pip wheel")
    assert result.returncode == 1
    assert "no luck with: pip wheel\n" in result.stderr
    assert "failed: compile vLLM 0.5.4 for the CPU" in result.stderr.splitlines()[-1]
    machine.take_calls()
    assert machine.run().returncode == 0
    assert machine.take_calls() == [*COMPILE, *INSTALL, *APPLY]


@pytest.mark.parametrize("arguments", [["--cuda"], ["--cpu"]])
def test_from_an_activated_environment_it_is_built_anew_with_the_python_below(
    machine: Machine, arguments: list[str]
) -> None:
    installed(machine)
    (machine.venv / "bin/python3.11").symlink_to("python")
    if arguments == ["--cpu"]:  # as an update leaves it that was interrupted
        (machine.venv / ".neustream/busy").touch()
    result = machine.run(*arguments, PATH=f"{machine.venv}/bin:{machine.bin}", VIRTUAL_ENV=str(machine.venv))
    assert result.returncode == 0, result.stderr
    assert f"with {machine.bin}/python3.11\n" in result.stderr
    assert machine.take_calls()[0] == f"-m venv {machine.venv}"
    assert (machine.venv / "bin/python").exists()


def test_the_python_below_the_environment_is_found_off_the_path(machine: Machine, tmp_path: Path) -> None:
    installed(machine)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (machine.bin / "python3.11").rename(elsewhere / "python3.11")
    (machine.venv / "pyvenv.cfg").write_text(f"home = {elsewhere}\nversion = 3.11.7\n")
    result = machine.run("--cuda")
    assert result.returncode == 0, result.stderr
    assert f"with {elsewhere}/python3.11\n" in result.stderr


def test_what_an_earlier_environment_held_is_gone_from_a_new_one(machine: Machine) -> None:
    installed(machine)
    (machine.venv / "lib/old.py").touch()
    (machine.venv / ".neustream/busy").touch()
    assert machine.run().returncode == 0
    assert not (machine.venv / "lib/old.py").exists()


def test_pip_gets_pins_with_hashes_alone(machine: Machine) -> None:
    installed(machine)
    text = "\n".join(machine.pins).replace(" \\\n", "")
    assert all("--hash=sha256:" in line for line in text.splitlines())
    names = {line.partition("==")[0] for line in text.splitlines()}
    assert {"numpy", "torch", "vllm"} & names == {"numpy"}


def test_changed_project_file_or_a_moved_clone_installs_the_repository_again(machine: Machine) -> None:
    installed(machine)
    with (machine.repo / "pyproject.toml").open("a") as file:
        file.write("\n")
    assert machine.run().returncode == 0
    assert machine.take_calls() == [*PROJECT, *APPLY]


def test_root_installs_missing_system_packages(machine: Machine) -> None:
    machine.fake("id", "echo 0")
    machine.fake("apt-get", 'echo "apt-get $*" >>"$CALLS"')
    machine.lacks("git")
    assert machine.run().returncode == 0
    assert machine.take_calls()[:2] == ["apt-get update -q", "apt-get install -y -q --no-install-recommends git"]


def test_root_gets_bubblewrap_too(machine: Machine) -> None:
    machine.fake("id", "echo 0")
    machine.fake("apt-get", 'echo "apt-get $1" >>"$CALLS"; [ "$1" = update ] || cp "$0" "$(dirname "$0")/bwrap"')
    machine.lacks("bwrap")
    result = machine.run()
    assert result.returncode == 0
    assert machine.take_calls()[:2] == ["apt-get update", "apt-get install"]
    assert "without bubblewrap" not in result.stderr


@pytest.mark.parametrize("failing", ["update", "install", "*"])
def test_bubblewrap_that_cannot_be_had_stops_nothing(machine: Machine, failing: str) -> None:
    machine.fake("id", "echo 0")
    machine.fake("apt-get", f'echo "apt-get $1" >>"$CALLS"; case $1 in {failing}) exit 100;; esac')
    machine.lacks("bwrap")
    result = machine.run()
    assert result.returncode == 0
    assert "install.sh: without bubblewrap " in result.stderr
    assert "apt-get install" in machine.take_calls()


def test_who_may_not_install_bubblewrap_is_told_and_goes_on(machine: Machine) -> None:
    machine.fake("apt-get", 'echo "apt-get $*" >>"$CALLS"')
    machine.lacks("bwrap")
    result = machine.run()
    assert result.returncode == 0
    assert "install.sh: without bubblewrap " in result.stderr
    assert not [call for call in machine.take_calls() if call.startswith("apt-get")]


V1 = ("--engine", "v1")


def test_todays_vllm_has_an_environment_of_its_own_and_is_neither_compiled_nor_patched(machine: Machine) -> None:
    machine.lacks("g++")
    result = machine.run(*V1)
    assert result.returncode == 0, result.stderr
    assert machine.take_calls() == [f"-m venv {machine.venv}-v1", *PACKAGES, *PROJECT]
    assert machine.run(*V1).stderr == f"install.sh: nothing to do: {machine.venv}-v1 is complete (cpu)\n"
    assert not machine.venv.exists()


def test_the_two_engines_do_not_share_a_folder(machine: Machine) -> None:
    installed(machine)
    result = machine.run(*V1, "--venv", str(machine.venv))
    assert result.returncode == 2
    assert "holds the other engine" in result.stderr


def test_an_unknown_engine_is_refused(machine: Machine) -> None:
    result = machine.run("--engine", "v2")
    assert result.returncode == 2
    assert result.stderr == "install.sh: --engine is v0 or v1, got 'v2'\n"


def test_todays_vllm_for_cuda_takes_pins_with_hashes_alone(machine: Machine) -> None:
    assert machine.run(*V1, "--cuda").returncode == 0
    assert machine.take_calls() == [f"-m venv {machine.venv}-v1", "pip install pins", *PROJECT]
