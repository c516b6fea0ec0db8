"""The campaign on a GPU machine, in its short form on a CPU: bad input, wheels, a run that is killed and goes on."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from neustream.catalog.machine import device_slug

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))
gpu_wheels = importlib.import_module("gpu_wheels")

SHORT = ("--models", "dit-nano", "--device", "cpu", "--quick", "--requests", "4", "--steps", "4:6")
ONE_POLICY = (*SHORT, "--policies", "neustream")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable}


def gpu(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(BENCH / "gpu.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    return found


def test_the_script_parses_and_says_what_it_takes() -> None:
    assert subprocess.run(["bash", "-n", BENCH / "gpu.sh"]).returncode == 0
    done = gpu("--help")
    assert done.returncode == 0
    for flag in ("--models", "--policies", "--device", "--quick", "--minutes", "--wheels", "--collect-wheels"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the campaign's folder: bash bench/gpu.sh OUT"),
        (("OUT", "--models", "dit-tiny"), "unknown model 'dit-tiny'; there are dit-s-2-256, "),
        (("OUT", "--models", "dit-nano,dit-nano"), "expected names like a,b, each once, got 'dit-nano,dit-nano'"),
        (("OUT", "--policies", "fcfs-llm"), "unknown policy 'fcfs-llm'; there are "),
        (("OUT", "--steps", "0"), "steps must be in 1…1000"),
        (("OUT", "--requests", "0"), "must be a whole number of at least 1, got '0'"),
        (("OUT", "--minutes", "nan"), "must be a number above 0, got 'nan'"),
        (("OUT", "--device", "tpu"), "invalid choice: 'tpu'"),
        (("OUT", "--wheels", "EMPTY"), "holds no wheel; `bash bench/gpu.sh --collect-wheels DIR` fills a folder"),
        (("FULL",), "is not empty and holds no campaign; name another OUT"),
        (("OTHER",), "holds a campaign of other settings, {'device': 'cpu', "),
        (("ELSEWHERE",), "holds a campaign on rtx4090, and this is cpu-"),
        (("FILE",), "cannot use the folder"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "thesis.txt").touch()
    (tmp_path / "OTHER").mkdir()
    settings = {"device": "cpu", "quick": False, "requests": 7, "steps": None}
    (tmp_path / "OTHER" / "settings.json").write_text(json.dumps(settings))
    elsewhere = {"device": "cpu", "quick": False, "requests": None, "steps": None, "machine": "rtx4090"}
    (tmp_path / "ELSEWHERE").mkdir()
    (tmp_path / "ELSEWHERE" / "settings.json").write_text(json.dumps(elsewhere))
    (tmp_path / "FILE").touch()
    places = [str(tmp_path / text) if text.isupper() else text for text in arguments]
    done = gpu(*places, *([] if "--device" in arguments else ["--device", "cpu"]))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("gpu.sh: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*/gpu.json"))


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    command = ["bash", str(BENCH / "gpu.sh"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env={**environment(), "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert "device cuda: the driver lists no NVIDIA GPU" in done.stderr


def stop_while_measuring(out: Path, number: signal.Signals) -> int:
    """Start a campaign, send it the signal when its table is half measured, and wait until none of it is left."""
    command = ["bash", str(BENCH / "gpu.sh"), str(out), *ONE_POLICY]
    kept = out / "tables" / ".dit-nano.json.partial"
    process = subprocess.Popen(
        command, start_new_session=True, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not kept.exists():
        assert process.poll() is None, "it ended before it kept anything"
        time.sleep(0.02)
    process.send_signal(number)
    code = process.wait()
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(process.pid, 0)
            time.sleep(0.02)
    assert not (out / "tables" / "dit-nano.json").exists()
    return code


def test_a_campaign_that_is_told_to_stop_leaves_no_process_behind(tmp_path: Path) -> None:
    assert stop_while_measuring(tmp_path / "out", signal.SIGTERM) == 128 + signal.SIGTERM
    assert report(tmp_path / "out")["models"]["dit-nano"]["table"] is None


def test_a_killed_campaign_goes_on_and_does_nothing_twice(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_while_measuring(out, signal.SIGKILL)

    done = gpu(out, *ONE_POLICY)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resuming: \d+ visits are kept", done.stdout)
    found = report(out)
    assert found["complete"]
    settings = {"device": "cpu", "quick": True, "requests": 4, "steps": "4:6", "machine": device_slug("cpu")}
    assert found["settings"] == settings
    assert set(found["versions"]) == {"torch", "diffusers", "transformers", "numpy"}
    nano = found["models"]["dit-nano"]
    assert nano["missing"] == []
    assert set(nano["table"]["modules"]) == {"denoise", "vae"}
    assert nano["table"]["modules"]["denoise"]["alone"] > 0
    assert nano["step_share"]["share"] == nano["step_share"]["outside"] / nano["step_share"]["forward"]
    assert [(row["policy"], row["injected"], row["complete"]) for row in nano["goodput"]] == [
        ("neustream", 4, True)
    ] * 2
    assert [row["rate"] for row in nano["goodput"]] == nano["plan"]["rates"]
    assert {path.suffix for path in (out / "figures").iterdir()} == {".png", ".pdf"}

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if path.name != "gpu.json"}
    again = gpu(out, *ONE_POLICY)
    assert again.returncode == 0
    assert "loading" not in again.stderr, "nothing is left to measure"
    del times[out / "settings.json"]  # written again by each call
    assert times == {path: path.stat().st_mtime_ns for path in times}

    cut, whole = sorted((out / "runs").iterdir())
    (cut / "summary.json").unlink()
    more = gpu(out, *SHORT, "--policies", "neustream,slack")
    assert more.returncode == 0, more.stderr
    assert (whole / "summary.json").stat().st_mtime_ns == times[whole / "summary.json"]
    assert (cut / "summary.json").exists()
    rows = report(out)["models"]["dit-nano"]["goodput"]
    assert [row["policy"] for row in rows] == ["neustream"] * 2 + ["slack"] * 2


def test_a_campaign_without_time_says_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = gpu(out, *ONE_POLICY, "--minutes", "0.01")
    assert done.returncode == 1
    assert done.stderr == "gpu.sh: dit-nano lacks its table, its step share, its goodput; the same command goes on\n"
    assert "no figures: no setting has ended" in done.stdout
    assert report(out)["models"]["dit-nano"]["table"] is None
    assert not report(out)["complete"]


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE))


def test_the_wheels_are_those_of_the_cuda_target_and_each_has_a_hash() -> None:
    text = gpu_wheels.PINS.read_text()
    found = pins(text)
    assert found.items() <= pins((ROOT / "constraints" / "cuda.txt").read_text()).items()
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)) == len(found)
    assert "torch" not in found
    assert {"diffusers", "transformers", "tokenizers", "safetensors", "numpy", "matplotlib"} <= set(found)


WITH_TORCH = ("torch", "typing-extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec")


def test_the_campaign_needs_no_module_that_is_no_wheel(tmp_path: Path) -> None:
    """Nothing else can be imported here than the wheels, PyTorch with what it brings, and the standard library."""
    for name in (*pins(gpu_wheels.PINS.read_text()), *WITH_TORCH):
        for file in metadata.files(name) or ():
            first, site = file.parts[0], Path(str(file.locate())).parents[len(file.parts) - 1]
            if first != ".." and not (tmp_path / first).exists():
                (tmp_path / first).symlink_to(site / first)
    script = (
        "import gpu_model, gpu_report, gpu_figures, exp.diffusion.bench, diffusion_plugin.measure\n"
        "import importlib.util\n"
        "print(importlib.util.find_spec('pandas'), importlib.util.find_spec('scipy'))"
    )
    path = os.pathsep.join(map(str, (BENCH, ROOT, tmp_path)))
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert (done.returncode, done.stdout) == (0, "None None\n"), done.stderr


def make_wheel(folder: Path, name: str, version: str = "1.0") -> None:
    """A wheel of one module of that name."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_wheels_are_installed_into_a_folder_once_and_replace_nothing_of_the_machine(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "packages"
    make_wheel(wheels, "neustream_tiny")
    make_wheel(wheels, "numpy")
    gpu_wheels.install(wheels, target)
    assert (target / "neustream_tiny.py").read_text() == "version = '1.0'\n"
    assert not (target / "numpy.py").exists(), "PyTorch's own numpy stays"
    written = (target / "neustream_tiny.py").stat().st_mtime_ns
    gpu_wheels.install(wheels, target)
    assert (target / "neustream_tiny.py").stat().st_mtime_ns == written
    (wheels / "neustream_tiny-1.0-py3-none-any.whl").unlink()
    make_wheel(wheels, "neustream_tiny", "2.0")
    gpu_wheels.install(wheels, target)
    assert (target / "neustream_tiny.py").read_text() == "version = '2.0'\n"


def test_wheels_that_are_too_many_or_broken_are_refused(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    with (large / "large-1.0-py3-none-any.whl").open("wb") as file:
        file.truncate(gpu_wheels.LIMIT + 1)
    with pytest.raises(gpu_wheels.WheelsError, match=r"holds 64\.0 MiB of wheels, which may be 64 MiB at most"):
        gpu_wheels.install(large, tmp_path / "packages")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "broken-1.0-py3-none-any.whl").write_text("no archive")
    with pytest.raises(gpu_wheels.WheelsError, match="pip could not install the wheels"):
        gpu_wheels.install(broken, tmp_path / "packages")
    assert not (tmp_path / "packages" / ".installed").exists()


def test_what_a_python_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    lacking = {"diffusers", "tqdm"}
    monkeypatch.setattr(gpu_wheels, "find_spec", lambda name: None if name in lacking else object())
    with pytest.raises(gpu_wheels.WheelsError, match="has no diffusers, tqdm: give --wheels DIR"):
        gpu_wheels.check_modules(tmp_path)
    lacking.add("torch")
    with pytest.raises(gpu_wheels.WheelsError, match="has no PyTorch; PYTHON="):
        gpu_wheels.check_modules(tmp_path)
