"""Lists, sweeps, run folders: what is right is understood, what is wrong is refused by name."""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exp.harness.folder import create_run_folder
from exp.harness.options import check_policy, chosen_cv
from exp.harness.settings import default_rates, sweep
from neustream.cli.arguments import BadInput, above, numbers, parse_goodput, whole


def test_a_list_of_numbers() -> None:
    assert numbers(above(0))("1,1.5, 2") == (1.0, 1.5, 2.0)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1,,2", "one", "", "2,2.0"])
def test_a_bad_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        numbers(above(0))(text)


@pytest.mark.parametrize("text", ["0", "1.5", "x"])
def test_a_bad_count_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        whole(1)(text)


def test_a_sweep_is_the_product_in_order_with_seeds_per_repeat() -> None:
    settings = sweep({"rate": (1.0, 2.0), "cv": (1.0, 4.0)}, repeats=2, seed=7)
    assert [(s.index, s["rate"], s["cv"], s.repeat, s.seed) for s in settings] == [
        (0, 1.0, 1.0, 0, 7),
        (1, 1.0, 1.0, 1, 8),
        (2, 1.0, 4.0, 0, 7),
        (3, 1.0, 4.0, 1, 8),
        (4, 2.0, 1.0, 0, 7),
        (5, 2.0, 1.0, 1, 8),
        (6, 2.0, 4.0, 0, 7),
        (7, 2.0, 4.0, 1, 8),
    ]
    assert str(settings[3]) == "rate 1 cv 4 (repeat 1)"


def test_default_rates_are_multiples_of_the_capacity() -> None:
    assert default_rates(1.23456) == (0.7407, 1.235, 1.728)


def test_burstiness_is_one_over_cv_squared() -> None:
    assert chosen_cv(None, (4.0, 0.25)) == (0.5, 2.0)
    assert chosen_cv((3.0,), None) == (3.0,)
    assert chosen_cv(None, None) is None
    with pytest.raises(BadInput, match="not both"):
        chosen_cv((1.0,), (1.0,))


def test_goodput_words_become_an_slo() -> None:
    assert parse_goodput(["ttft:200", "tpot:50", "e2el:5000"]) == {"ttft_ms": 200, "tpot_ms": 50, "e2el_ms": 5000}
    for wrong in ("ttft", "ttft:0", "ttft:x", "latency:3", f"ttft:{math.inf}"):
        with pytest.raises(BadInput, match="--goodput takes"):
            parse_goodput([wrong])


def test_an_unknown_policy_is_refused_naming_those_for_this_kind_of_model() -> None:
    check_policy("neustream", "llm")
    check_policy("vllm", "llm", extra=["vllm"])
    with pytest.raises(BadInput, match=r"unknown policy 'clockwork'; there are vllm, .*neustream"):
        check_policy("clockwork", "llm", extra=["vllm"])


def test_a_name_makes_a_folder_in_runs_and_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    with create_run_folder("one", "p", "m", runs=tmp_path / "runs") as folder:
        assert folder.path == tmp_path / "runs" / "one"
    with create_run_folder(str(tmp_path / "two"), "p", "m") as folder:
        assert sorted(file.name for file in folder.path.iterdir()) == ["requests.jsonl", "steps.jsonl"]


def test_runs_of_the_same_second_get_different_names(tmp_path: Path) -> None:
    paths = set()
    for _ in range(3):
        with create_run_folder(None, "fcfs", "some/opt-125m", runs=tmp_path) as folder:
            paths.add(folder.path)
    assert len(paths) == 3
    assert all("-fcfs-opt-125m" in path.name for path in paths)


def test_runs_that_start_at_the_same_moment_do_not_share_a_folder(tmp_path: Path) -> None:
    """Each sees no folder of its name yet; only one can make it."""
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: create_run_folder(None, "fcfs", "opt-125m", runs=tmp_path), range(40)))
        assert len({folder.path for folder in folders}) == 40

        def named(_: int) -> bool:
            try:
                folders.append(create_run_folder("mine", "fcfs", "opt-125m", runs=tmp_path))
            except BadInput:
                return False
            return True

        assert sum(pool.map(named, range(40))) == 1
    for folder in folders:
        folder.close()


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    with create_run_folder("one", "p", "m", runs=tmp_path) as folder:
        folder.requests.write({"kept": True})
    with pytest.raises(BadInput, match="is not empty"):
        create_run_folder("one", "p", "m", runs=tmp_path)
    assert (tmp_path / "one" / "requests.jsonl").read_text() == '{"kept": true}\n'


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"cannot write the output folder .*file/run"):
        create_run_folder(str(tmp_path / "file" / "run"), "p", "m")


def test_a_run_that_measured_nothing_leaves_nothing(tmp_path: Path) -> None:
    create_run_folder("one", "p", "m", runs=tmp_path).remove_if_empty()
    assert list(tmp_path.iterdir()) == []
