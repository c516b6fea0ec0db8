"""Latency models predict what was measured; damaged tables are refused by file, field and value."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neustream import LatencyTable, Shape, TableError, load_table, save_table
from neustream.cost import step_seconds
from neustream.latency import BatchLatency, ContextLatency, TokensLatency, interpolate
from neustream.plan import Piece, StepPlan
from neustream.request import Request
from neustream.route import llm_route
from neustream.slo import NO_DEADLINES
from neustream.tables import TableName, find_table, parse_table, table_name, table_path

GOOD = {
    "schema": 1,
    "model": "m",
    "device": "d",
    "dtype": "float16",
    "modules": {
        "denoise": {"kind": "batch", "batch": [1, 2, 4], "seconds": [1.0, 1.5, 3.0]},
        "prefill": {"kind": "tokens", "coef": [0.1, 0.01, 0.0], "tokens": [32, 64], "seconds": [0.5, 0.9]},
        "decode": {"kind": "context", "coef": [0.2, 0.001]},
    },
}


def test_batch_latency_is_interpolated_inside_and_extrapolated_from_the_last_slope_outside():
    model = BatchLatency((1, 2, 4), (1.0, 1.5, 3.0))
    assert [model.at(b) for b in (1, 2, 3, 4, 6)] == [1.0, 1.5, 2.25, 3.0, 4.5]


def test_a_falling_last_slope_never_makes_larger_batches_cheaper_than_the_last_measured():
    assert BatchLatency((1, 2), (2.0, 1.0)).at(9) == 1.0


def test_a_batch_below_the_first_measured_is_positive_and_no_dearer():
    assert 0 < BatchLatency((4, 8), (1.0, 3.0)).at(1) <= 1.0


def test_prefill_is_interpolated_where_the_grid_covers_the_tokens():
    model = TokensLatency((0.1, 0.01, 0.001), (32, 64), (0.5, 0.9))
    assert model.alone(48) == pytest.approx(0.7)
    assert model.predict(Shape(2, 48, 5000, 48)) == pytest.approx(0.7)


def test_prompts_shorter_than_the_grid_cost_what_its_first_point_costs():
    model = TokensLatency((0.1, 0.01, 0.0), (32, 64), (0.9, 1.5))
    assert [model.alone(tokens) for tokens in (1, 31, 32)] == [0.9, 0.9, 0.9]


def test_beyond_the_grid_the_formula_adds_to_the_last_point():
    model = TokensLatency((0.1, 0.01, 0.001), (32, 64), (0.5, 0.9))
    assert model.alone(64) == 0.9
    assert model.alone(65) == pytest.approx(0.9 + 0.01 + 0.001 * (65**2 - 64**2))
    assert model.predict(Shape(2, 100, 5000, 100)) == pytest.approx(0.9 + 0.01 * 36 + 0.001 * (5000 - 64**2))
    many_short = Shape(100, 100, 100, 100)
    assert model.predict(many_short) == 0.9


@given(
    st.tuples(st.floats(-0.1, 1), st.floats(-0.01, 0.1), st.floats(-0.01, 0.01)),
    st.lists(st.integers(1, 200), min_size=1, max_size=5, unique=True),
    st.data(),
)
def test_a_grid_of_rising_seconds_never_makes_a_longer_prompt_cheaper_nor_jumps(coef, tokens, data):
    tokens = tuple(sorted(tokens))
    seconds = tuple(sorted(data.draw(st.lists(st.floats(0.01, 5), min_size=len(tokens), max_size=len(tokens)))))
    model = TokensLatency(coef, tokens, seconds)
    costs = [model.alone(work) for work in range(1, tokens[-1] + 1)]
    assert all(before <= after + 1e-9 for before, after in pairwise(costs))
    assert min(costs) >= seconds[0] - 1e-9
    beyond = [model.alone(work) for work in range(tokens[-1], tokens[-1] + 50)]
    assert min(beyond) >= seconds[-1] - 1e-9
    step = abs(coef[1]) + abs(coef[2]) * (2 * tokens[-1] + 100)
    assert all(abs(after - before) <= step + 1e-9 for before, after in pairwise(beyond))


def test_a_formula_that_falls_to_nothing_is_never_free():
    assert TokensLatency((0.1, -0.01, 0.0)).alone(20) == pytest.approx(0.1)
    assert TokensLatency((-0.5, 0.01, 0.0)).alone(20) == pytest.approx(0.2)


def test_only_a_measured_grid_over_batches_limits_the_batches_that_may_be_planned():
    models = BatchLatency((1, 2, 4), (1.0, 1.5, 3.0)), TokensLatency((0.1, 0.0, 0.0)), ContextLatency((0.2, 0.001))
    assert [model.largest for model in models] == [4, None, None]


def test_decode_adds_the_context_to_a_constant_or_to_a_grid_over_the_batch():
    assert ContextLatency((0.2, 0.001)).predict(Shape(8, 0, 0, 100)) == pytest.approx(0.3)
    grid = ContextLatency((0.2, 0.001), (1, 3), (0.2, 0.4))
    assert grid.predict(Shape(2, 0, 0, 100)) == pytest.approx(0.4)
    assert (grid.alone(50), grid.slope) == (pytest.approx(0.25), 0.001)


@given(st.lists(st.floats(0.001, 10), min_size=2, max_size=6), st.floats(0, 12))
def test_interpolation_stays_between_neighbours_inside_the_range(ys: list[float], x: float):
    xs = list(range(1, len(ys) + 1))
    value = interpolate(xs, ys, x)
    if 1 <= x <= len(ys):
        left = min(int(x), len(ys) - 1) - 1
        assert min(ys[left : left + 2]) - 1e-9 <= value <= max(ys[left : left + 2]) + 1e-9


def test_a_table_survives_saving_and_loading(tmp_path: Path):
    table = parse_table(GOOD)
    save_table(table, tmp_path / "d" / "m.json")
    again = load_table(tmp_path / "d" / "m.json", model="m")
    assert again == table
    assert again.info == {"dtype": "float16"}


def test_a_grid_over_the_batch_size_is_written_as_schema_2(tmp_path: Path):
    table = LatencyTable("m", "d", {"decode": ContextLatency((0.2, 0.001), (1, 8), (0.2, 0.3))})
    save_table(table, tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["schema"] == 2
    assert load_table(tmp_path / "m.json") == table


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 7, "schema is 7"),
        (("model",), 3, "model is 3"),
        (("modules",), {}, "modules is missing or empty"),
        (("modules", "denoise", "kind"), "cubic", "modules.denoise.kind is 'cubic'"),
        (("modules", "denoise", "seconds"), [1.0, 2.0], "modules.denoise.seconds has 2 entries, expected 3"),
        (("modules", "denoise", "seconds"), [1.0, -2.0, 3.0], r"modules.denoise.seconds\[1\] is -2.0"),
        (("modules", "denoise", "seconds"), [1.0, float("nan"), 3.0], r"modules.denoise.seconds\[1\] is nan"),
        (("modules", "denoise", "batch"), [1, 1, 2], r"modules.denoise.batch\[1\] is 1"),
        (("modules", "prefill", "coef"), [0.1], "modules.prefill.coef has 1 entries, expected 3"),
        (("modules", "prefill", "coef"), [0.0, -0.1, 0.1], r"modules.prefill.coef is \[0.0, -0.1, 0.1\]"),
        (("modules", "decode", "coef"), [0.0, 0.1], r"modules.decode.coef\[0\] is 0.0"),
        (("modules", "decode", "coef"), [0.2, -1e-6], r"modules.decode.coef\[1\] is -1e-06, expected at least 0"),
    ],
)
def test_a_damaged_table_is_refused_naming_file_field_and_value(tmp_path: Path, path, value, message):
    data = json.loads(json.dumps(GOOD))
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(data))
    with pytest.raises(TableError, match=f"bad.json: .*{message}"):
        load_table(file)


def formula(*coef: float, **fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields, "modules": {"prefill": {"kind": "tokens", "coef": list(coef)}}}


@pytest.mark.parametrize(
    ("coef", "tokens", "seconds"),
    [
        ((-0.5, 0.01, 0.0), 1, "-0.49"),
        ((0.1, -0.01, 0.0), 2048, "-20.38"),
        ((0.1, 0.001, -1e-6), 2048, "-2.046"),
        ((1.0, -0.01, 1e-5), 2048, "-19.46"),
    ],
)
def test_a_formula_that_predicts_no_time_in_its_range_is_refused(coef: Any, tokens: int, seconds: str) -> None:
    with pytest.raises(TableError, match=rf"modules.prefill.coef is .*; {tokens} tokens take {seconds}"):
        parse_table(formula(*coef))


def test_a_formula_counts_up_to_the_step_that_the_table_names_and_not_where_a_grid_stands() -> None:
    falling = (0.1, 0.001, -1e-6)
    assert parse_table(formula(*falling, max_prefill_tokens=512))["prefill"].alone(512) > 0
    data = formula(*falling)
    data["modules"]["prefill"] |= {"tokens": [32, 64], "seconds": [0.5, 0.9]}
    assert parse_table(data)["prefill"].alone(2048) >= 0.9


@given(st.tuples(st.floats(-1, 1), st.floats(-0.1, 0.1), st.floats(-1e-4, 1e-4)), st.integers(1, 60))
def test_every_step_of_a_formula_that_is_taken_has_positive_seconds(coef: Any, largest: int) -> None:
    """However the tokens are divided among prompts: even, all in one, one each, or one prompt and single tokens."""
    try:
        prefill = parse_table(formula(*coef, max_prefill_tokens=largest))["prefill"]
    except TableError:
        return
    assert isinstance(prefill, TokensLatency)
    for work in range(1, largest + 1):
        for rest in range(work):
            assert prefill.formula(work, (work - rest) ** 2 + rest) > 0


def test_a_missing_file_no_json_and_another_models_table_are_refused(tmp_path: Path):
    with pytest.raises(TableError, match="cannot be read"):
        load_table(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(TableError, match="is not JSON"):
        load_table(tmp_path / "text.json")
    (tmp_path / "m.json").write_text(json.dumps(GOOD))
    with pytest.raises(TableError, match="model is 'm', expected 'n'"):
        load_table(tmp_path / "m.json", model="n")


def test_a_measured_table_wins_over_an_estimated_one(tmp_path: Path):
    with pytest.raises(TableError, match=r"no table of m on d in .*; there are none"):
        find_table(tmp_path, "d", "m")
    estimated = parse_table({**GOOD, "estimated": {"why": "roofline"}})
    save_table(estimated, tmp_path / "d" / "m.estimated.json")
    assert find_table(tmp_path, "d", "m").origin == "estimated"
    save_table(parse_table(GOOD), tmp_path / "d" / "m.json")
    assert find_table(tmp_path, "d", "m").origin == "measured"


def test_an_unknown_module_is_named_with_the_known_ones():
    with pytest.raises(TableError, match="no module 'vae'; it has denoise, prefill, decode"):
        parse_table(GOOD)["vae"]


def put(folder: Path, name: str, model: str = "opt-13b", device: str = "h200", **fields: Any) -> None:
    save_table(parse_table({**GOOD, "model": model, "device": device, **fields}), table_path(folder, device, name))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("opt-1.3b", ("opt-1.3b", None, False, "v0")),
        ("opt-13b.tp2", ("opt-13b", 2, False, "v0")),
        ("opt-13b.estimated", ("opt-13b", None, True, "v0")),
        ("opt-13b.tp16.estimated", ("opt-13b", 16, True, "v0")),
        ("a.tp0", ("a.tp0", None, False, "v0")),
        (".tp2", (".tp2", None, False, "v0")),
        ("opt-13b.v1.tp2", ("opt-13b", 2, False, "v1")),
        ("opt-13b.v1", ("opt-13b", None, False, "v1")),
    ],
)
def test_the_name_of_a_table_tells_model_devices_and_origin(name: str, parts: tuple[Any, ...]) -> None:
    assert TableName.parse(name) == parts
    assert str(TableName.parse(name)) == name


def test_tables_of_two_engines_lie_side_by_side(tmp_path: Path) -> None:
    put(tmp_path, table_name("opt-13b"), engine="v0")
    put(tmp_path, table_name("opt-13b", engine="v1"), engine="v1")
    assert find_table(tmp_path, "h200", "opt-13b").info["engine"] == "v0"
    assert find_table(tmp_path, "h200", "opt-13b.v1").info["engine"] == "v1"


def test_a_table_for_several_devices_is_found_by_its_name_and_by_its_number_of_devices(tmp_path: Path) -> None:
    put(tmp_path, table_name("opt-13b", 2), tensor_parallel=2)
    assert find_table(tmp_path, "h200", "opt-13b.tp2").tensor_parallel == 2
    assert find_table(tmp_path, "h200", "opt-13b", 2).tensor_parallel == 2
    with pytest.raises(TableError, match=r"no table of opt-13b on h200 in .*; there are h200/opt-13b\.tp2$"):
        find_table(tmp_path, "h200", "opt-13b")
    with pytest.raises(TableError, match=r"no table of opt-13b for tensor parallelism 4 on h200"):
        find_table(tmp_path, "h200", "opt-13b", 4)
    with pytest.raises(TableError, match=r"opt-13b\.tp2 is for tensor parallelism 2, asked for is 4"):
        find_table(tmp_path, "h200", "opt-13b.tp2", 4)


def test_every_name_that_a_message_offers_is_a_name_that_is_found(tmp_path: Path) -> None:
    put(tmp_path, "opt-13b")
    put(tmp_path, "opt-13b.tp2", tensor_parallel=2)
    put(tmp_path, "opt-13b.tp4.estimated", tensor_parallel=4, estimated={"why": "roofline"})
    put(tmp_path, "opt-13b.estimated", estimated={"why": "roofline"})
    with pytest.raises(TableError, match="there are h200") as caught:
        find_table(tmp_path, "h200", "opt-66b")
    offered = str(caught.value).rpartition("there are ")[2].split(", ")
    found = [find_table(tmp_path, *name.split("/")) for name in offered]
    assert [(table.tensor_parallel, table.is_estimated) for table in found] == [
        (1, False),
        (1, True),
        (2, False),
        (4, True),
    ]


def test_a_table_with_the_plain_name_serves_where_it_was_made_for_as_many_devices(tmp_path: Path) -> None:
    put(tmp_path, "opt-30b", "opt-30b", tensor_parallel=2)
    assert find_table(tmp_path, "h200", "opt-30b").tensor_parallel == 2
    assert find_table(tmp_path, "h200", "opt-30b", 2).tensor_parallel == 2
    with pytest.raises(TableError, match="no table of opt-30b for tensor parallelism 1"):
        find_table(tmp_path, "h200", "opt-30b", 1)


def test_a_table_of_another_model_under_a_name_with_devices_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "opt-13b.tp2", "opt-66b", tensor_parallel=2)
    with pytest.raises(TableError, match="model is 'opt-66b', expected 'opt-13b'"):
        find_table(tmp_path, "h200", "opt-13b.tp2")


def test_a_prompt_may_cost_more_than_its_tokens_whatever_the_grid_says(tmp_path: Path) -> None:
    """As a picture does, which passes a vision tower before its tokens are there."""
    plain = TokensLatency((0.1, 0.01, 0.001), (32, 64), (0.5, 0.9))
    model = TokensLatency((0.1, 0.01, 0.001), (32, 64), (0.5, 0.9), per_prompt=0.25)
    for batch, work in ((1, 20), (2, 48), (3, 100)):
        shape = Shape(batch, work, 3000, work)
        assert model.predict(shape) == pytest.approx(plain.predict(shape) + batch * 0.25)
    assert model.alone(48) == pytest.approx(0.95)
    for latency, schema in ((plain, 1), (model, 3)):
        save_table(LatencyTable("m", "d", {"prefill": latency}), tmp_path / "t.json")
        assert json.loads((tmp_path / "t.json").read_text())["schema"] == schema
        assert load_table(tmp_path / "t.json")["prefill"] == latency
    data = json.loads((tmp_path / "t.json").read_text())
    data["modules"]["prefill"]["per_prompt"] = -1
    with pytest.raises(TableError, match=r"modules\.prefill\.per_prompt is -1\.0, expected seconds of at least 0"):
        parse_table(data)


def test_what_a_prompt_costs_beside_its_tokens_is_paid_with_its_first_piece() -> None:
    modules = {"prefill": TokensLatency((0.1, 0.01, 0.0), per_prompt=0.25), "decode": ContextLatency((0.01, 0.0))}
    table = LatencyTable("m", "d", modules)
    route = llm_route(4)
    new, begun, running = (Request(name, 0.0, NO_DEADLINES, route, 40) for name in ("new", "begun", "running"))
    begun.process(10)
    running.advance(0.0)
    pieces = (Piece(new, 20), Piece(begun, 20))
    assert step_seconds(table, StepPlan("decode", (running,), pieces=pieces)) == pytest.approx(0.1 + 0.01 * 41 + 0.25)
