"""Figures: what is drawn is what came out of the runs, simulated and real; bad input is one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from exp.figures.__main__ import main
from exp.figures.draw import BOUND, OTHERS, STYLES, draw_batches, draw_goodput, style_of
from exp.figures.recorded import read_studies
from exp.figures.simulated import batch_policies, make_plan, pick_pairs, run_plan
from exp.figures.study import BINS, Study, bin_batches
from neustream import LatencyTable, save_table
from neustream.cli.arguments import BadInput
from neustream.latency import BatchLatency, ContextLatency, TokensLatency

DIT = LatencyTable(
    "dit-s-2-256",
    "rtx4090",
    {
        "denoise": BatchLatency((1, 2, 3, 4), (0.01, 0.012, 0.014, 0.016)),
        "vae": BatchLatency((1, 2), (0.01, 0.02)),
    },
)
OPT = LatencyTable(
    "opt-13b",
    "a6000",
    {"prefill": TokensLatency((0.02, 0.0002, 0.0)), "decode": ContextLatency((0.04, 1e-6))},
    {"estimated": {"device": "paper"}},
)


@pytest.fixture(autouse=True)
def no_figure_stays_open() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A folder with a measured table of an image model, and an estimated one of a language model."""
    folder = tmp_path / "tables"
    save_table(DIT, folder / "rtx4090" / "dit-s-2-256.json")
    save_table(OPT, folder / "a6000" / "opt-13b.estimated.json")
    return folder


@pytest.fixture
def dit_study(tables: Path) -> Study:
    plan = make_plan(tables, ("rtx4090", "dit-s-2-256"), ["neustream", "clockwork"], 12, 0, quick=True)
    return run_plan(plan, 1, lambda: None)


def run_folder(path: Path, policy: str, settings: list[dict[str, Any]], **header: Any) -> Path:
    """A run as the experiments leave it, with two steps per setting."""
    path.mkdir(parents=True)
    figures = {"token_goodput": 50.0, "slo_attainment": 0.5, "seconds": 10.0, "requests": 20, "request_goodput": 1.0}
    summary = {
        "schema": 1,
        "kind": "llm",
        "model": "opt-125m",
        "policy": policy,
        "device": "cpu",
        "capacity": 2.0,
        "taken_at": "engine",
        "axes": ["rate", "cv", "pslo", "dslo"],
        "settings": [{"cv": 1.0, "pslo": 3.0, "dslo": 1.5, **figures, **setting} for setting in settings],
        **header,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    steps = [
        {"setting": i, "time": time, "seconds": 1.0, "module": module, "request_ids": [str(k) for k in range(size)]}
        for i in range(len(settings))
        for time, module, size in ((0.0, "prefill", 9), (1.0, "decode", 2), (3.0, "decode", 4))
    ]
    (path / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return path


def test_a_simulated_study_sweeps_one_axis_at_a_time(dit_study: Study) -> None:
    assert list(dit_study.panels) == ["rate", "cv", "slo_scale"]
    assert dit_study.policies == ["neustream", "clockwork"]
    assert dit_study.origin == "simulated from a measured latency table, 12 requests per run"
    for axis, rows in dit_study.panels.items():
        others = {"rate", "cv", "slo_scale"} - {axis}
        assert len({tuple(row[other] for other in others) for row in rows}) == 1
        assert [row["policy"] for row in rows] == ["neustream", "clockwork"] * (len(rows) // 2)
        assert all(row["good"] <= row["bound"] <= row["requests"] == 12 for row in rows)


def test_the_lines_of_a_figure_are_the_figures_of_the_runs(dit_study: Study) -> None:
    figure = draw_goodput(dit_study)
    for axes, (axis, rows) in zip(figure.axes, dit_study.panels.items(), strict=True):
        for policy in dit_study.policies:
            colour, marker, _ = style_of(policy)
            line = next(line for line in axes.lines if line.get_color() == colour)
            drawn = [tuple(point) for point in np.array(line.get_xydata()).tolist()]
            assert drawn == sorted((row[axis], row["request_goodput"]) for row in rows if row["policy"] == policy)
            assert line.get_marker() == marker
        bound = next(line for line in axes.lines if line.get_color() == BOUND)
        highest = max(row["request_goodput"] for row in rows)
        assert np.max(bound.get_ydata()) >= highest * (1 - 1e-12)
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] >= highest


def test_a_figure_says_what_it_shows(dit_study: Study) -> None:
    figure = draw_goodput(dit_study)
    texts = [text.get_text() for text in figure.texts]
    assert dit_study.origin in texts
    assert figure.get_suptitle() == "dit-s-2-256 on rtx4090: goodput"
    assert figure.axes[0].get_xlabel() == "request rate (requests/s)"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:3] == ["neustream", "clockwork", "bound: no schedule can exceed it"]


def test_language_models_show_tokens_too_and_name_an_estimated_table(tables: Path) -> None:
    plan = make_plan(tables, ("a6000", "opt-13b"), ["fcfs", "neustream"], 6, 0, quick=True)
    study = run_plan(plan, 1, lambda: None)
    assert list(study.panels) == ["rate", "cv", "pslo", "dslo"]
    assert study.origin.startswith("simulated from an estimated latency table")
    figure = draw_goodput(study)
    assert len(figure.axes) == 8
    assert figure.axes[4].get_ylabel() == "tokens on time per second"


def test_batch_sizes_over_time_are_weighted_by_the_time_they_took() -> None:
    batches = bin_batches("neustream", [(0.0, 0.5, 2), (0.5, 1.0, 4), (3.0, BINS * 1.0, 1)], BINS * 1.0)
    assert (batches.mean[0], batches.least[0], batches.most[0]) == (3.0, 2.0, 4.0)
    assert np.isnan(batches.mean[1:3]).all()
    assert (batches.mean[3:] == 1.0).all()
    assert batches.seconds[0] == 0.5


def test_a_step_over_a_boundary_counts_on_both_sides() -> None:
    batches = bin_batches("neustream", [(0.5, 1.5, 6), (1.5, 2.0, 2)], BINS * 1.0)
    assert list(batches.mean[:2]) == [6.0, 4.0]


def test_the_batch_figure_has_a_panel_for_each_of_two_policies(dit_study: Study) -> None:
    figure = draw_batches(dit_study)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["neustream", "clockwork"]
    assert max(np.nanmax(batches.most) for batches in dit_study.batches) > 1
    assert batch_policies(("fcfs", "neustream", "slack")) == ("neustream", "fcfs")
    assert batch_policies(("clockwork",)) == ("clockwork",)


def test_every_known_policy_has_its_own_colour_and_marker() -> None:
    styles = [*STYLES.values(), *OTHERS]
    assert len({colour for colour, _, _ in styles}) == len({marker for _, marker, _ in styles}) == len(styles)
    assert style_of("vllm") == style_of("fcfs")


def test_real_runs_become_a_study_with_repeats_averaged(tmp_path: Path) -> None:
    ours = [
        {"rate": 2.0, "request_goodput": 1.0},
        {"rate": 1.0, "request_goodput": 0.8},
        {"rate": 2.0, "request_goodput": 3.0},
    ]
    a = run_folder(tmp_path / "a", "neustream", ours)
    b = run_folder(tmp_path / "b", "vllm", [{"rate": 1.0}, {"rate": 2.0, "cv": 4.0}])
    (study,) = read_studies([str(a), str(b)])
    assert study.origin == "measured on cpu, times taken at the engine"
    drawn = [(row["policy"], row["rate"], row["cv"], row["request_goodput"]) for row in study.panels["rate"]]
    assert drawn == [("neustream", 1.0, 1.0, 0.8), ("vllm", 1.0, 1.0, 1.0), ("neustream", 2.0, 1.0, 2.0)]
    assert study.batches_at == "rate 1, cv 1, pslo 3, dslo 1.5"  # the setting that both ran
    assert [batches.policy for batches in study.batches] == ["neustream", "vllm"]
    assert np.nanmax(study.batches[0].most) == 4.0  # decode steps only


def test_nothing_of_a_legend_is_cut_off(tmp_path: Path, dit_study: Study) -> None:
    """A study of one axis is narrow, and has as many policies as any."""
    policies = ("neustream", "vllm", "slack", "chunked")
    folders = [str(run_folder(tmp_path / policy, policy, [{"rate": 1.0}, {"rate": 2.0}])) for policy in policies]
    for study in (*read_studies(folders), dit_study):
        for figure in (draw_goodput(study), draw_batches(study)):
            figure.canvas.draw()
            box, (legend,) = figure.bbox, figure.legends
            shown = legend.get_window_extent()
            assert box.x0 <= shown.x0 < shown.x1 <= box.x1
            assert box.y0 <= shown.y0
            assert shown.y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)


def test_runs_of_other_models_are_studies_of_their_own(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", "neustream", [{"rate": 1.0}])
    b = run_folder(tmp_path / "b", "neustream", [{"rate": 1.0, "slo_scale": 3.0}], model="dit-nano", kind="diffusion",
                   axes=["rate", "cv", "slo_scale"])  # fmt: skip
    first, second = read_studies([str(a), str(b)])
    assert (first.is_llm, second.is_llm) == (True, False)
    assert list(second.panels) == ["rate"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "summary.json").unlink(), "no run"),
        (lambda path: (path / "summary.json").write_text("{"), "is not JSON"),
        (lambda path: (path / "summary.json").write_text('{"model": "m"}'), r"summary\.json: policy is missing"),
        (lambda path: (path / "steps.jsonl").write_text('{"setting": 0}\n'), r"steps\.jsonl:1: time is missing"),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    folder = run_folder(tmp_path / "a", "neustream", [{"rate": 1.0}])
    damage(folder)
    with pytest.raises(BadInput, match=message):
        read_studies([str(folder)])


def test_runs_that_swept_different_things_are_refused(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", "neustream", [{"rate": 1.0}])
    b = run_folder(tmp_path / "b", "vllm", [{"rate": 1.0}], axes=["rate", "cv"])
    with pytest.raises(BadInput, match=r"b swept rate, cv; .*a swept rate, cv, pslo, dslo"):
        read_studies([str(a), str(b)])


@pytest.mark.parametrize(
    ("key", "values"),
    [("tensor_parallel", (2, 4)), ("dtype", ("float16", "bfloat16")), ("max_tokens", (16, 300)),
     ("table_digest", ("x", "y")), ("slo", ({"ttft_ms": 100.0}, {"ttft_ms": 2000.0}))],
)  # fmt: skip
def test_runs_whose_figures_mean_different_things_are_not_averaged(key: str, values: Any, tmp_path: Path) -> None:
    folders = [
        str(run_folder(tmp_path / f"{i}", "neustream", [{"rate": 1.0, "token_goodput": goodput}], **{key: value}))
        for i, (goodput, value) in enumerate(zip((30.0, 90.0), values, strict=True))
    ]
    with pytest.raises(BadInput, match=rf"/0 and .*/1 differ in {key} \("):
        read_studies(folders)
    (study,) = read_studies(folders, force=True)
    assert [row["token_goodput"] for row in study.panels["rate"]] == [60.0]


def test_the_command_writes_png_pdf_and_the_numbers(tables: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    command = ["--tables", str(tables), "--out", str(out), "--models", "dit-s-2-256", "--policy", "neustream"]
    assert main([*command, "--quick", "--requests", "5", "--processes", "1"]) == 0
    names = ["batches-rtx4090-dit-s-2-256", "goodput-rtx4090-dit-s-2-256"]
    found = sorted(path.name for path in out.iterdir())
    assert found == sorted([f"{name}.{kind}" for name in names for kind in ("pdf", "png")] + [f"{names[1]}.json"])
    for name in names:
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 10
    rows = json.loads((out / f"{names[1]}.json").read_text())["panels"]["rate"]
    assert {row["policy"] for row in rows} == {"neustream"}
    assert "simulated from a measured latency table, 5 requests per run" in capsys.readouterr().out


def test_the_command_draws_real_runs(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "a", "neustream", [{"rate": 1.0}, {"rate": 2.0}])
    out = tmp_path / "out"
    assert main(["--runs", str(run), "--out", str(out)]) == 0
    assert (out / "goodput-cpu-opt-125m.png").exists()
    assert (out / "batches-cpu-opt-125m.pdf").exists()


def test_the_papers_pairs_that_have_tables_are_the_default(tables: Path) -> None:
    assert pick_pairs(tables, [], quick=False) == [("rtx4090", "dit-s-2-256"), ("a6000", "opt-13b")]
    assert pick_pairs(tables, ["opt-13b", "rtx4090/dit-s-2-256"], quick=False) == [
        ("a6000", "opt-13b"),
        ("rtx4090", "dit-s-2-256"),
    ]


def test_rates_are_multiples_of_the_capacity_or_the_papers(tables: Path) -> None:
    pair = ("rtx4090", "dit-s-2-256")
    own = make_plan(tables, pair, [], 12, 0, quick=False)
    assert [round(point.rate / own.capacity, 2) for point in own.axes["rate"]] == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 2]
    papers = make_plan(tables, pair, [], 12, 0, quick=False, published=True)
    assert [point.rate for point in papers.axes["rate"]] == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert papers.usual.rate == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "opt-9b"], "no table of opt-9b in"),
        (["--policy", "best"], "unknown policy 'best'; there are"),
        (["--models", "dit-s-2-256", "--policy", "chunked"], "none of chunked serves dit-s-2-256; "),
        (["--requests", "0"], "must be at least 1, got 0"),
        (["--tables", "/nowhere"], "--tables /nowhere is not a folder"),
        (["--runs", "/nowhere"], "/nowhere: no run"),
        (["--out", "/proc/figures"], "cannot write the output folder /proc/figures"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str, tables: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--tables", str(tables), *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
