"""Estimated tables: hand-computed costs, the command line, what ships, and the error against published tables."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neusim import estimate as estimating
from neusim.estimate import TABLES, main
from neusim.estimating.llm import LlmCost
from neusim.estimating.roofline import Assumptions, Kernel, Roofline, product
from neustream import LatencyTable, Shape, load_table
from neustream.catalog.accelerators import ACCELERATORS
from neustream.catalog.llms import LLMS, OPT_SHAPES
from neustream.cli.paths import ROOT
from neustream.latency import TokensLatency
from neustream.tables import find_table

REFERENCE = Path(os.environ.get("NEUSTREAM_REFERENCE") or ROOT.parent / "shared" / "reference")
estimate = functools.cache(estimating.estimate)
A6000 = ACCELERATORS["a6000"]
IDEAL = Assumptions(matmul_efficiency=1.0, memory_efficiency=1.0, link_efficiency=1.0, kernel_floor_s=0.0)


def reference(device: str, model: str) -> LatencyTable:
    path = REFERENCE / "tables" / device / f"{model}.json"
    if not path.exists():
        pytest.skip(f"no published table at {path}")
    return load_table(path)


def test_a_kernel_takes_the_larger_of_arithmetic_and_traffic() -> None:
    roofline = Roofline(A6000, "float16", IDEAL)
    assert roofline.seconds(Kernel(flops=154.8e12)) == pytest.approx(1.0)
    assert roofline.seconds(Kernel(flops=154.8e12, moved=2 * 768e9)) == pytest.approx(2.0)
    assert roofline.seconds(Kernel(flops=154.8e12, moved=1.0, extra=768e9)) == pytest.approx(2.0)


def test_a_product_is_paid_in_whole_tiles_and_whole_waves() -> None:
    roofline = Roofline(A6000, "float16", IDEAL)
    tile = 2 * 128 * 128 * 10_000 / (154.8e12 / A6000.num_units)
    assert A6000.num_units == 12 * 7
    assert roofline.seconds(product(12 * 128, 7 * 128, 10_000, 2)) == pytest.approx(tile)
    # One row more: 13 × 14 tiles of 128 × 64 in three waves, each half a tile's work at 0.8 of its rate.
    assert roofline.seconds(product(12 * 128 + 1, 7 * 128, 10_000, 2)) == pytest.approx(3 * 0.5 / 0.8 * tile)


def test_eager_kernels_wait_for_the_host_or_for_the_device() -> None:
    roofline = Roofline(A6000, "float16", Assumptions(eager_host_s=2e-6, eager_launch_s=1e-6, kernel_floor_s=1e-6))
    assert roofline.eager([Kernel()] * 10) == pytest.approx(31e-6)  # ten launches, then the last kernel
    long = Kernel(moved=614.4e9 * 10e-6)
    assert roofline.eager([long] * 10) == pytest.approx(103e-6)  # one launch, then ten kernels


def test_an_all_reduce_makes_two_rounds_over_the_ring() -> None:
    roofline = Roofline(A6000, "float16", IDEAL, tp=4)
    assert roofline.all_reduce(4 * 31.5e9) == pytest.approx(6 * (1.0 + 5e-6) + 6e-6)
    assert Roofline(A6000, "float16", IDEAL).all_reduce(1e9) == 0.0


def test_a_decode_step_reads_every_weight_once() -> None:
    shape = OPT_SHAPES["opt-13b"]
    assume = Assumptions(memory_efficiency=1.0, kernel_floor_s=0.0, llm_step_host_s=0.0, llm_sequence_host_s=0.0)
    seconds = LlmCost(shape, Roofline(A6000, "float16", assume), "float16").decode(1)
    assert seconds == pytest.approx(shape.num_parameters * 2 / A6000.bytes_per_s, rel=0.01)


def test_a_llama_like_model_reads_its_gated_layers_once_and_a_tower_adds_its_seconds_to_each_prompt() -> None:
    """The two 7b models differ in the vision tower alone, as far as a step of theirs goes."""
    code, sight = LLMS["codellama-7b"], LLMS["llava-1.5-7b"]
    assume = Assumptions(memory_efficiency=1.0, kernel_floor_s=0.0, llm_step_host_s=0.0, llm_sequence_host_s=0.0)
    seconds = LlmCost(code, Roofline(A6000, "float16", assume), "float16").decode(1)
    read = code.num_parameters - code.vocabulary * code.hidden  # of the word embedding one row only
    assert seconds == pytest.approx(read * 2 / A6000.bytes_per_s, rel=0.05)
    with_tower, without = (estimate(shape.name, "a6000")["prefill"] for shape in (sight, code))
    assert isinstance(with_tower, TokensLatency)
    assert 0.008 < with_tower.per_prompt < 0.04
    for batch in (1, 4):
        shape = Shape(batch, 700 * batch, 490_000 * batch, 700 * batch)
        more = with_tower.predict(shape) - without.predict(shape)
        assert more == pytest.approx(batch * with_tower.per_prompt, rel=0.02)


def test_more_devices_are_faster_and_a_faster_device_is_too() -> None:
    steps = [estimate("opt-30b", "a6000", tp=tp)["decode"].predict(Shape(8, 0, 0, 2000)) for tp in (2, 4)]
    assert steps[0] > steps[1]
    names = ("a6000", "a100-80g", "h200")
    steps = [estimate("opt-13b", name)["decode"].predict(Shape(8, 0, 0, 2000)) for name in names]
    assert steps == sorted(steps, reverse=True)


def test_kernels_of_a_larger_batch_follow_from_small_ones() -> None:
    torch = pytest.importorskip("torch")
    from neusim.estimating import image as estimate_image
    from neusim.estimating.kernels import trace
    from neustream.catalog.images import MODELS

    spec = MODELS["dit-nano"]
    part = estimate_image.trace_on_meta(spec, "denoise", torch.float16)
    network, call = estimate_image.build_on_meta(spec, "denoise", torch.float16)
    with estimate_image.on_meta(torch.float16):
        direct = trace(call, network, 7)
    assert part.kernels(7) == direct


def test_a_traced_network_has_the_published_operations() -> None:
    torch = pytest.importorskip("torch")
    from neusim.estimating import image as estimate_image
    from neustream.catalog.images import MODELS

    kernels = estimate_image.trace_on_meta(MODELS["dit-s-2-256"], "denoise", torch.float16).kernels(1)
    published = 2 * 6.06e9  # multiply-adds of one DiT-S/2 pass at 256 × 256 (Peebles & Xie, table 4)
    assert sum(kernel.flops for kernel in kernels) / 2 == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("model", ["dit-nano", "sd-nano", "palette-nano", "opt-125m", "codellama-7b"])
def test_every_kind_of_model_gets_a_table_that_loads(model: str, tmp_path: Path) -> None:
    assert main(["--model", model, "--device", "l40s", "--out", str(tmp_path)]) == 0
    table = find_table(tmp_path, "l40s", model)
    assert table.is_estimated
    assert table.origin == "estimated"
    assert table.info["estimated"]["peak_gb_per_s"] == 864


def test_a_table_for_more_devices_than_usual_lies_beside_the_usual_one(tmp_path: Path) -> None:
    command = ["--model", "opt-125m", "--device", "l40s", "--out", str(tmp_path)]
    assert main(command) == main([*command, "--tp", "2"]) == 0
    assert find_table(tmp_path, "l40s", "opt-125m").tensor_parallel == 1
    assert find_table(tmp_path, "l40s", "opt-125m", 2).tensor_parallel == 2
    assert find_table(tmp_path, "l40s", "opt-125m.tp2.estimated").tensor_parallel == 2


def test_larger_batches_take_longer_but_less_per_request() -> None:
    model = estimate("dit-nano", "h100")["denoise"]
    seconds = [model.predict(Shape(batch)) for batch in range(1, 33)]
    assert seconds == sorted(seconds)
    assert seconds[31] / 32 < seconds[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "opt-7b", "--device", "a6000"], "unknown model 'opt-7b'; there are opt-125m"),
        (["--model", "opt-13b", "--device", "v100"], "unknown device 'v100'; rates are known of rtx4090"),
        (["--model", "opt-13b", "--device", "a6000", "--dtype", "int3"], "unknown dtype 'int3'; there are float16"),
        (["--model", "opt-13b", "--device", "a6000", "--tp", "3"], "40 heads, which --tp 3 does not divide"),
        (["--model", "opt-13b", "--device", "a6000", "--tp", "0"], "--tp must be at least 1, got 0"),
        (["--model", "opt-66b", "--device", "a6000", "--tp", "2"], "give --tp 4 or more"),
        (["--model", "dit-nano", "--device", "a6000", "--tp", "2"], "--tp is for language models"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_it_runs_as_a_script_and_needs_no_torch_for_a_language_model(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    command = [sys.executable, str(ROOT / "neusim" / "estimate.py"), "--model", "opt-125m", "--device", "h200"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, env=environment, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "h200" / "opt-125m.estimated.json").exists()


SHIPPED = [
    ("rtx4090", "dit-s-2-256"),
    ("rtx4090", "dit-xl-2-256"),
    ("rtx4090", "palette-256"),
    ("rtx4090", "sd15-256"),
    ("rtx4090", "sd15-512"),
    ("h100", "sd15-512"),
    ("a6000", "opt-13b"),
    ("a6000", "opt-30b"),
    ("a6000", "opt-66b"),
]


@pytest.mark.parametrize(("device", "model"), SHIPPED)
def test_the_tables_that_ship_rest_on_the_assumptions_of_today(device: str, model: str) -> None:
    shipped = load_table(TABLES / device / f"{model}.estimated.json", model=model)
    tp = shipped.info.get("tensor_parallel", 1)
    today = estimating.describe(Roofline(ACCELERATORS[device], "float16", tp=tp), "float16")
    assert {key: shipped.info[key] for key in today} == today
    assert shipped.device == device


@pytest.mark.parametrize(("device", "model"), [SHIPPED[i] for i in (0, 2, 6, 7, 8)])
def test_the_tables_that_ship_are_what_the_estimate_gives(device: str, model: str) -> None:
    shipped = load_table(TABLES / device / f"{model}.estimated.json", model=model)
    fresh = estimate(model, device)
    assert shipped.info == fresh.info
    for name, module in fresh.modules.items():
        for batch in (1, 2, 8, 32):
            shape = Shape(batch, 100 * batch, 10_000 * batch, 100 * batch)
            assert shipped[name].predict(shape) == pytest.approx(module.predict(shape), rel=1e-6)


@pytest.mark.parametrize("model", ["opt-13b", "opt-30b", "opt-66b"])
def test_decode_and_prefill_are_near_the_published_ones(model: str) -> None:
    published, estimated = reference("a6000", model), estimate(model, "a6000")
    for batch in (1, 4, 16, 32, 64):
        for context in (100, 250, 500, 1000):
            shape = Shape(batch, 0, 0, batch * context)
            if shape.context <= 16 * estimated.info["kv_blocks"]:
                ratio = estimated["decode"].predict(shape) / published["decode"].predict(shape)
                assert 0.8 <= ratio <= 1.2, (batch, context, ratio)
    for tokens in range(256, 2049, 32):
        shape = Shape(1, tokens, tokens**2, tokens)
        ratio = estimated["prefill"].predict(shape) / published["prefill"].predict(shape)
        assert 0.65 <= ratio <= 1.35, (tokens, ratio)


@pytest.mark.parametrize("model", ["dit-s-2-256", "sd15-256"])
def test_denoising_from_batch_8_is_near_the_published_one(model: str) -> None:
    published, estimated = reference("rtx4090", model)["denoise"], estimate(model, "rtx4090")["denoise"]
    for batch in range(8, (published.largest or 8) + 1):
        ratio = estimated.predict(Shape(batch)) / published.predict(Shape(batch))
        assert 0.6 <= ratio <= 1.4, (batch, ratio)
