"""Prompts: lengths from the log-normal or from a data set, the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exp.llm.model import Model, resolve_model
from exp.llm.prompts import Prompts, read_prompts, read_traced
from neustream.catalog.llms import OptShape
from neustream.cli.arguments import BadInput

MODEL = resolve_model("facebook/opt-125m")


def talk(words: int, first: str = "human") -> dict[str, Any]:
    return {"conversations": [{"from": first, "value": "word " * words}, {"from": "gpt", "value": "yes"}]}


def dataset(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "talks.json"
    path.write_text(json.dumps(content))
    return path


def test_tokens_are_in_the_vocabulary_and_as_many_as_the_lengths_say() -> None:
    prompts = Prompts(vocabulary=100)
    made = prompts.make(50, seed=3)
    assert [len(prompt) for prompt in made] == prompts.lengths(50, seed=3)
    assert {token for prompt in made for token in prompt} <= set(range(4, 100))
    assert made == prompts.make(50, seed=3) != prompts.make(50, seed=4)


def test_the_default_lengths_have_a_mean_of_about_a_hundred() -> None:
    assert 85 <= Prompts(100).mean_length(seed=0) <= 110
    assert Prompts(100).longest() == 400


def test_lengths_of_a_data_set_are_those_of_the_first_human_turns(tmp_path: Path) -> None:
    talks = [talk(30), talk(60), talk(30, first="gpt"), talk(1), talk(3000), {"conversations": []}]
    prompts = read_prompts(dataset(tmp_path, talks), MODEL)
    assert prompts.dataset == [40, 80]
    assert prompts.source == "talks.json (2 prompts, tokens estimated as 4/3 of the words)"
    assert sorted(prompts.lengths(2, seed=0)) == [40, 80], "without replacement while it lasts"
    assert set(prompts.lengths(10, seed=0)) == {40, 80}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"text": "hello"}], "expected a list of"),
        ({"conversations": []}, "expected a list of"),
        ([], "none of its 0 conversations"),
        ([talk(1)], "none of its 1 conversations begins with 4 to 1024 tokens"),
    ],
)
def test_a_data_set_of_another_format_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_prompts(dataset(tmp_path, content), MODEL)


def test_a_local_folder_is_a_model_of_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "opt-tiny"
    folder.mkdir()
    shape = OptShape("opt-tiny", 2, 64, 2, 128, 64, vocabulary=1000, max_positions=512)
    (folder / "config.json").write_text(json.dumps(shape.config()))
    model = resolve_model(str(folder))
    assert model == Model(shape, folder=folder)
    assert model.name == "opt-tiny"
    assert not model.has_weights
    (folder / "model.safetensors").touch()
    assert model.has_weights
    (folder / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"config\.json: model_type is None"):
        resolve_model(str(folder))


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:00:{second:02d}.0000000,{prompt},{output}\n"
    for second, prompt, output in ((0, 400, 90), (1, 80, 3), (4, 9000, 6000), (10, 40, 30))
)


def trace(tmp_path: Path) -> Path:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    return path


def test_a_trace_gives_lengths_gaps_and_ends(tmp_path: Path) -> None:
    prompts = read_traced(trace(tmp_path), None, (0.25, 0.5), MODEL, 100)
    assert prompts.lengths(4, 0) == [100, 20, 2048 - 100, 10]
    assert prompts.outputs(4, 0, 100) == [45, 2, 100, 15]
    assert prompts.arrivals(0.6, 1.0, 4, 0) == pytest.approx([0.0, 0.5, 2.0, 5.0])
    assert [len(prompt) for prompt in prompts.make(2, 0)] == [100, 20]


def test_another_seed_goes_on_where_the_one_before_it_ended(tmp_path: Path) -> None:
    prompts = read_traced(trace(tmp_path), None, (1.0, 1.0), MODEL, 100)
    assert prompts.lengths(2, 1) == [2048 - 100, 40]
    assert prompts.lengths(3, 1) == [40, 400, 80]


def test_a_window_of_a_trace_and_what_is_none(tmp_path: Path) -> None:
    assert read_traced(trace(tmp_path), (0.5, 5.0), (1.0, 1.0), MODEL, 100).lengths(2, 0) == [80, 2048 - 100]
    bad = ((trace(tmp_path), (20.0, 30.0), 100), (tmp_path / "no", None, 100), (trace(tmp_path), None, 2048))
    for path, window, most in bad:
        with pytest.raises(BadInput) as caught:
            read_traced(path, window, (1.0, 1.0), MODEL, most)
        assert "\n" not in str(caught.value)
