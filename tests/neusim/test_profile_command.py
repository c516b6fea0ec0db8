"""The command: both ways to call it, what it refuses before anything heavy, and a whole profile on the real engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neusim.profile import main, print_fit
from neusim.profiling.fit import fit_batch
from neusim.profiling.memory import ITEM_BYTES
from neustream.latency import ContextLatency, Shape, TokensLatency
from neustream.tables import LatencyTable, load_table

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "model_type": "opt",
    "hidden_size": 128,
    "word_embed_proj_dim": 128,
    "ffn_dim": 256,
    "num_attention_heads": 2,
    "num_hidden_layers": 6,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "do_layer_norm_before": True,
}

CLIP = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
LLAVA = {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": CLIP}


def run(*command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, env=os.environ | env, timeout=300
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-opt"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


# How it is called


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["neusim/profile.py"], "."),
        (["-m", "neusim.profile"], "."),
        (["profile.py"], "neusim"),
        ([str(ROOT / "neusim" / "profile.py")], "tests"),
    ],
)
def test_every_way_to_call_it_prints_the_help(arguments: list[str], folder: str) -> None:
    result = run(*arguments, "--help", cwd=ROOT / folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert "--layers" in result.stdout


AFTER_THE_SCRIPT = """
import runpy, sys
sys.argv = ["profile.py", "--help"]
{path}
try:
    runpy.{call}
except SystemExit:
    pass
import cProfile, profile, torch
assert "neusim" not in profile.__file__, profile.__file__
print("fine")
"""


@pytest.mark.parametrize(
    ("path", "call"),
    [
        # A script's own folder stands first on the path.
        (f"sys.path[:1] = ['{ROOT}/neusim', '{ROOT}']", "run_path('neusim/profile.py', None, '__main__')"),
        ("", "run_module('neusim.profile', None, '__main__')"),
    ],
)
def test_the_standard_profile_module_is_not_hidden(path: str, call: str) -> None:
    result = run("-c", AFTER_THE_SCRIPT.format(path=path, call=call))
    assert result.stdout.endswith("fine\n"), result.stderr


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gpt-5"], "unknown model 'gpt-5'; there are opt-125m"),
        (["--model", "opt-125m", "--dtype", "int3"], "unknown dtype 'int3'; there are auto, float32"),
        (["--model", "opt-125m", "--device", "tpu"], "unknown device 'tpu'; there are cpu, cuda"),
        (["--model", "opt-125m", "--device", "cpu", "--dtype", "float16"], "float16 is not to be had on a CPU"),
        (["--model", "opt-125m", "--tp", "0"], "--tp must be at least 1, got 0"),
        (["--model", "opt-125m", "--device", "cpu", "--tp", "5"], "--tp must divide the 12 heads of opt-125m, got 5"),
        (["--model", "opt-125m", "--device", "cpu", "--tp", "2"], "--tp must be 1 on this CPU, got 2: for more vLLM"),
        (["--model", "opt-125m", "--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--model", "opt-125m", "--layers", "4"], "two rising numbers of layers, as 2,4; got '4'"),
        (["--model", "opt-125m", "--layers", "4,2"], "two rising numbers of layers, as 2,4; got '4,2'"),
        (["--model", "opt-125m", "--device", "cpu", "--layers", "2,12"], "below the 12 of opt-125m, got 12"),
        (["--model", "opt-125m", "--out", "/proc/nothing/t.json"], "--out /proc/nothing/t.json cannot be written"),
        (["--model", "opt-125m", "--out", "/tmp"], "--out /tmp is a folder"),
        (["--model", "opt-125m", "--tp", "two"], "--tp: invalid int value: 'two'"),
        (["--quick"], "the following arguments are required: --model"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(arguments)
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]


def test_bad_input_is_refused_before_torch_or_vllm_is_imported(tmp_path: Path) -> None:
    for name in ("torch", "vllm"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported')")
    command = ["neusim/profile.py", "--model", "opt-125m", "--device", "cpu", "--layers", "2,99"]
    result = run(*command, PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        (json.dumps(LLAVA), "reads pictures, whose time is not measured yet"),
        ('{"model_type": "gpt2"}', "model_type is 'gpt2'; only 'opt', 'llama' and 'llava' are known here"),
        ('{"model_type": "llama", "num_hidden_layers": 0}', "num_hidden_layers is 0, expected a whole number from 1"),
        ('{"model_type": "llava"}', "text_config is of model_type None, expected 'llama'"),
        (json.dumps(LLAVA | {"vision_config": {"model_type": "siglip"}}), "model_type 'siglip', expected 'clip_vision"),
        (
            json.dumps(LLAVA | {"vision_config": CLIP | {"patch_size": 15}}),
            "image_size 336 is no multiple of patch_siz",
        ),
        (json.dumps(TINY | {"ffn_dim": 0}), "ffn_dim is 0, expected a whole number from 1"),
        (json.dumps(TINY | {"num_attention_heads": 3}), "hidden_size 128 is no multiple of 3 heads"),
    ],
)
def test_a_folder_without_a_usable_config_is_refused(
    tmp_path: Path, config: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert main(["--model", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("neusim.profile.profile_model", interrupted)
    assert main(["--model", "opt-125m"]) == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_a_fit_that_nothing_judges_has_an_unknown_r2(capsys: pytest.CaptureFixture[str]) -> None:
    model, report = fit_batch({1: 1.0, 2: 1.5})
    print_fit(LatencyTable("dit", "test", {"vae": model}, {"fit": {"vae": report}}))
    assert capsys.readouterr().out == "vae: R² unknown, 2 points; none held out\n"


# The whole of it, on the real engine


@pytest.mark.parametrize("layers", [[], ["--layers", "1,2"]])
def test_a_tiny_model_is_profiled_end_to_end(tiny: Path, tmp_path: Path, layers: list[str]) -> None:
    out = tmp_path / "tables" / "tiny.json"
    command = ["neusim/profile.py", "--model", str(tiny), "--device", "cpu", "--quick", "--repeats", "1"]
    result = run(*command, "--out", str(out), *layers, OMP_NUM_THREADS="1", VLLM_CPU_KVCACHE_SPACE="3")
    assert result.returncode == 0, result.stderr
    table = load_table(out, model="tiny-opt")
    # What an engine of the experiments would have, whatever the one that was measured was given.
    block = 2 * TINY["num_hidden_layers"] * 128 * ITEM_BYTES[table.info["dtype"]] * 16
    assert (table.kv_blocks, table.kv_block_size) == (3 * 2**30 // block, 16)
    assert table.info["kv_blocks_from"] == "VLLM_CPU_KVCACHE_SPACE of 3 GiB"
    prefill, decode = table["prefill"], table["decode"]
    assert isinstance(prefill, TokensLatency)
    assert isinstance(decode, ContextLatency)
    # A point that other work disturbed at every visit is left out, so a busy machine may lack a few.
    assert set(decode.batch) <= {1, 2, 4, 8, 16, 32, 64, 128, 256}
    assert len(decode.batch) >= 2
    assert decode.predict(Shape(256, context=256 * 64)) > decode.predict(Shape(1, context=64)) > 0
    assert prefill.alone(100) > 0
    assert table.info.get("layers_measured") == ([1, 2] if layers else None)
    assert table.info["fit"]["decode"]["held_out"] > 0
    assert "prefill: R²" in result.stdout
    assert sorted(path.name for path in out.parent.iterdir()) == ["tiny.json"]
    print_fit(table)
