"""The experiment program: a run's folder, the same requests for both policies, bad input in one line with code 2."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_helpers import flat_table
from PIL import Image

from diffusion_plugin.pipelines.base import Pipeline
from exp.diffusion.__main__ import main
from exp.diffusion.bench import DiffusionBench
from exp.diffusion.config import step_range
from exp.harness.settings import Setting
from neusim.profiling.settings import SettingsError, make_settings
from neustream.tables import load_table, save_table

STEP_FIELDS = {
    "batch_size", "time", "module", "high_priority_count", "low_priority_count", "queue_size_before_schedule",
    "batch_size_after_schedule", "running_requests_id_list", "rest_time",
}  # fmt: skip

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls the program as a command line would; returns its exit code."""

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["exp.diffusion", *map(str, arguments)])
        try:
            return main()
        except SystemExit as error:
            return int(error.code or 0)

    return call


@pytest.fixture
def table(dit: Pipeline, tmp_path: Path) -> Path:
    """1 ms a step whatever the batch: the program needs one to set deadlines by."""
    path = tmp_path / "table.json"
    save_table(flat_table(dit), path)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_accounts_for_every_request_and_every_batch(run: Run, table: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "run", tmp_path / "images"
    flags = ["--device", "cpu", "--table", table, "--out", out, "--save-images", images]
    code = run("dit-nano", *flags, "--requests", 12, "--steps", "4:9", "--rate", "100", "--slo-scale", "500,1")
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"]
    assert summary["policy"] == "neustream"
    assert [row["slo_scale"] for row in summary["settings"]] == [500.0, 1.0]
    assert [row["requests"] for row in summary["settings"]] == [12, 12]
    requests = lines(out / "requests.jsonl")
    assert len({request["id"] for request in requests}) == len(requests) == 24
    first = [request for request in requests if request["setting"] == 0]
    assert {request["outcome"] for request in first} == {"met"}
    steps = [step for step in lines(out / "steps.jsonl") if step["setting"] == 0]
    for step in steps:
        assert set(step) > STEP_FIELDS
        assert step["batch_size"] == len(step["running_requests_id_list"]) == len(step["rest_time"])
        assert step["batch_size"] == step["high_priority_count"] + step["low_priority_count"]
        assert step["batch_size"] == step["batch_size_after_schedule"] <= step["queue_size_before_schedule"]
    visits = sum(step["batch_size"] for step in steps if step["module"] == "denoise")
    assert visits == sum(request["visits"]["denoise"] for request in first)
    finished = {request["id"] for request in requests if request["outcome"] in ("met", "late")}
    assert {path.stem for path in images.glob("*.png")} == finished
    with Image.open(images / f"{first[0]['id']}.png") as picture:
        assert picture.size == (32, 32)


def test_both_policies_get_the_same_requests(dit: Pipeline) -> None:
    setting = Setting(0, {"rate": 5.0, "cv": 2.0, "slo_scale": 3.0}, 0, 0)
    benches = [
        DiffusionBench(dit, flat_table(dit), policy=policy, num_requests=500, steps=(200, 250))
        for policy in ("neustream", "clockwork")
    ]
    asks, same = (bench.asks(setting) for bench in benches)
    assert asks == same
    assert [ask.payload[1] for ask in asks] == np.random.RandomState(0).randint(200, 250, 500).tolist()
    asked = benches[0].request(setting, asks[7].request_id, asks[7].payload)
    assert (asked.steps, asked.seed, asked.slo_scale, asked.class_label) == (asks[7].payload[1], 7, 3.0, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dit-huge"], "unknown model 'dit-huge'; there are dit-s-2-256, "),
        (["dit-nano", "--model", "sd-nano"], "two models are named: dit-nano and --model sd-nano"),
        (["--steps", "0"], "steps must be in 1…1000"),
        (["--steps", "10:1002"], "steps must be in 1…1000"),
        (["--steps", "many"], "expected a step count as 50, or a range as 30:51, got 'many'"),
        (["--slo-scale", "0.5"], "must be at least 1, got 0.5"),
        (["--rate", "-1"], "must be above 0, got -1"),
        (["--rate", "1", "--load", "1"], "give it or --rate, not both"),
        (["--policy", "chunked"], "unknown policy 'chunked'; there are "),
        (["--schedule", "euler", "dit-nano"], "dit-nano has no schedule 'euler'; it has ddim, ddpm"),
        (["--device", "tpu"], "unknown device 'tpu'; there are cpu, cuda"),
        (["--dtype", "float16"], "dtype float16 is not to be had on a CPU"),
        (["--table", "/nowhere.json"], "table /nowhere.json: cannot be read"),
        (["dit-nano", "--image", "x.png"], "--image is for Palette; dit-nano takes no image"),
        (["--weights", "/nowhere"], "weights '/nowhere': no such folder"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "run"
    device = [] if "--device" in arguments else ["--device", "cpu"]
    assert run(*arguments, *device, "--out", out) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("exp.diffusion: ")
    assert error.count("\n") == 1
    assert not out.exists()


def test_weights_and_images_that_do_not_fit_are_refused_before_a_run_is_made(
    run: Run, capsys: pytest.CaptureFixture[str], table: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "notes.png"
    picture.write_text("no picture")
    out = tmp_path / "run"
    assert run("palette-nano", "--device", "cpu", "--image", picture, "--out", out) == 2
    assert capsys.readouterr().err == (
        f"exp.diffusion: input image '{picture}' cannot be read: not a picture of a known format\n"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("dit-nano", "--device", "cpu", "--table", table, "--weights", empty, "--out", out) == 2
    assert f"weights: {empty / 'transformer'} has none of " in capsys.readouterr().err
    assert not out.exists()


def test_step_ranges() -> None:
    assert step_range("50") == (50, 51)
    assert step_range("30:51") == (30, 51)
    assert step_range("1:1001") == (1, 1001)


def test_the_profiler_measures_every_module_of_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neusim import profile
    from neusim.profiling import diffusion

    monkeypatch.setattr(diffusion, "QUICK_SIZES", (1, 2, 4))
    out = tmp_path / "sd-nano.json"
    profile.profile_model("sd-nano", device="cpu", quick=True, repeats=1, out=out, progress=False)
    found = load_table(out, model="sd-nano")
    assert set(found.modules) == {"text_encoder", "denoise", "vae", "safety"}
    assert {model.batch for model in found.modules.values()} == {(1, 2, 4)}  # type: ignore[attr-defined]
    assert found.info["dtype"] == "float32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sd-nano.json"]


def test_the_profiler_stops_at_the_batch_that_memory_does_not_hold() -> None:
    from neusim.profiling.diffusion import fitting

    class Timer:
        def run(self, module: str, batch: int) -> list[float]:
            if batch > 5:
                raise MemoryError
            return [0.1]

    timer: Any = Timer()
    assert fitting(timer, "vae", (1, 2, 4, 8, 16)) == [1, 2, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "dit-huge"}, "unknown model 'dit-huge'; there are opt-125m"),
        ({"tp": 2}, "an image pipeline runs on one device: --tp must be 1, got 2"),
        ({"layers": "1,2"}, "--layers is for language models"),
        ({"dtype": "float16"}, "dtype float16 is not to be had on a CPU"),
    ],
)
def test_what_cannot_be_profiled(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    def profile() -> None:
        settings, target = make_settings(
            **{"model": "dit-nano", "device": "cpu", "out": tmp_path / "t.json", **options}
        )
        target.profiler().profile(settings)

    with pytest.raises(SettingsError, match=message):
        profile()
