"""The price of steps in which pieces of prompts ride with decodes, and the measured module for it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neustream import LatencyTable, Request, StepPlan
from neustream.cost import StepPrice, StepSums, shape_of, step_seconds, step_sums
from neustream.history import StepHistory
from neustream.latency import (
    FITTED_TOKENS,
    BatchLatency,
    ContextLatency,
    MixedLatency,
    Shape,
    TokensLatency,
    levelled,
)
from neustream.plan import Piece
from neustream.route import llm_route
from neustream.slo import NO_DEADLINES
from neustream.tables import TableError, likely_square, load_table, parse_table, save_table, table_to_json

JAGGED = TokensLatency((0.0135, 0.000247, -2.8e-9), (32, 256, 288, 352, 512), (0.04, 0.068, 0.122, 0.094, 0.133))
DECODE = ContextLatency((0.044, 1e-6), (1, 64), (0.044, 0.05))
TABLE = LatencyTable("opt", "gpu", {"prefill": JAGGED, "decode": DECODE})


def request(name="r", size=100, done=0, cached=0):
    made = Request(name, 0.0, NO_DEADLINES, llm_route(9), size)
    made.processed, made.cached = done, cached
    return made


def running(name, size):
    made = request(name, size)
    made.advance(0.0)
    return made


@st.composite
def tables(draw):
    seconds = st.floats(0.001, 1)
    tokens = tuple(sorted(draw(st.sets(st.integers(1, 3000), max_size=6))))
    grid = tuple(draw(st.lists(seconds, min_size=len(tokens), max_size=len(tokens))))
    coef = draw(st.tuples(st.floats(0, 0.1), st.floats(1e-5, 1e-3), st.floats(-1e-8, 1e-8)))
    prefill = TokensLatency(coef, tokens, grid, per_prompt=draw(st.sampled_from([0.0, 0.25])))
    batch = tuple(sorted(draw(st.sets(st.integers(1, 99), max_size=4))))
    base = tuple(draw(st.lists(seconds, min_size=len(batch), max_size=len(batch))))
    decode = ContextLatency((draw(seconds), draw(st.floats(0, 1e-5))), batch, base)
    mixed = None
    if draw(st.booleans()):
        numbers = [draw(st.floats(0, 1e-4)) for _ in range(5)]
        mixed = MixedLatency(0.01 + numbers[0], *numbers[1:], tokens, levelled(grid))
    return LatencyTable("m", "d", {"prefill": prefill, "decode": decode}, {}, mixed)


PIECE = st.tuples(st.integers(1, 4000), st.integers(0, 9000))
PIECES = st.lists(PIECE, max_size=4)


def sums_of(pieces, decodes, context):
    sums = StepSums(decodes=decodes, read=context if decodes else 0)
    for tokens, done in pieces:
        sums = sums.with_piece(tokens, done)
    return sums


@given(
    tables(), PIECES, st.integers(0, 99), st.integers(0, 50_000), st.tuples(st.integers(1, 4000), st.integers(0, 9000))
)
def test_seconds_never_fall_with_more_work_and_are_never_below_the_decodes_alone(
    table, pieces, decodes, context, piece
):
    price = StepPrice(table)
    sums = sums_of(pieces, decodes, context)
    seconds = price.of(sums)
    alone = table["decode"].predict(Shape(decodes, 0, 0, sums.read)) if decodes else 0.0
    assert seconds >= alone - 1e-12
    assert price.of(sums.with_piece(*piece)) >= seconds - 1e-12
    tokens, done = piece
    costs = [price.of(sums.with_piece(tokens + more, done)) for more in (0, 1, 7, 300)]
    assert costs == sorted(costs)
    assert costs[0] > 0
    if sums.work:
        assert price.of(sums._replace(read=sums.read + 100)) >= seconds - 1e-12


@given(tables(), PIECES, st.integers(0, 99), st.floats(0, 2), st.integers(0, 9000), st.integers(1, 5000))
def test_the_largest_piece_fits_and_one_token_more_does_not(table, pieces, decodes, limit, done, most):
    price = StepPrice(table)
    sums = sums_of(pieces, decodes, 1000)
    tokens = price.largest_piece(limit, sums, done, most)
    assert 0 <= tokens <= most
    if tokens:
        assert price.of(sums.with_piece(tokens, done)) <= limit
    if tokens < most:
        assert price.of(sums.with_piece(tokens + 1, done)) > limit


@given(tables(), st.integers(1, 5000))
def test_a_step_without_pieces_costs_what_it_always_did(table, size):
    batch = (running("a", size), running("b", 7))
    assert step_seconds(table, StepPlan("decode", batch)) == table["decode"].predict(shape_of(batch))
    batch = (request("a", size), request("b", 7))
    assert step_seconds(table, StepPlan("prefill", batch)) == table["prefill"].predict(shape_of(batch))
    price = StepPrice(table)
    assert price.seconds(0, 0, 0, 0, 3, 500) == table["decode"].predict(Shape(3, 0, 0, 500))
    assert price.of(StepSums()) == 0.0


@given(tables(), st.integers(1, 3000))
def test_a_whole_prompt_as_one_piece_costs_what_its_prefill_costs_at_least(table, size):
    table = replace(table, mixed=None)
    piece = step_seconds(table, StepPlan("prefill", pieces=(Piece(request("a", size), size),)))
    prefill = table["prefill"]
    assert piece >= prefill.alone(size) - 1e-12
    if prefill.seconds == levelled(prefill.seconds) and prefill.coef[2] > 0:
        assert piece == pytest.approx(prefill.alone(size))


def test_a_grid_that_falls_gains_nothing():
    price = StepPrice(TABLE)
    costs = [price.of(StepSums(decodes=8, read=4000).with_piece(tokens)) for tokens in (279, 280, 344, 400, 504)]
    assert costs[1] == costs[2] == pytest.approx(0.122 + 0.004)
    assert costs == sorted(costs)
    assert price.largest_piece(0.11, StepSums(decodes=8, read=4000)) < 280  # 344 would fit by the grid itself


def test_earlier_context_is_read_once_and_attended_to_by_each_token():
    price = StepPrice(TABLE)
    pairs = 2 * likely_square(JAGGED, DECODE)
    assert pairs == pytest.approx(1e-6 * 0.000247 / 0.044)
    first, later = StepSums().with_piece(512), StepSums().with_piece(512, 4096)
    assert price.of(later) - price.of(first) == pytest.approx(512 * 4096 * pairs + 4096 * 1e-6)
    fitted = StepPrice(replace(TABLE, modules={**TABLE.modules, "prefill": replace(JAGGED, coef=(0.01, 2e-4, 5e-9))}))
    assert fitted.of(later) - fitted.of(first) == pytest.approx(512 * 4096 * 1e-8 + 4096 * 1e-6)


def test_in_pieces_a_prompt_pays_for_the_same_pairs_as_whole():
    prefill = TokensLatency((0.0, 1e-4, 1e-8))
    price = StepPrice(LatencyTable("m", "d", {"prefill": prefill, "decode": ContextLatency((0.01, 0.0))}))
    in_pieces = sum(price.of(StepSums().with_piece(500, done)) for done in range(0, 4000, 500))
    assert in_pieces == pytest.approx(prefill.alone(4000))


def test_a_negative_square_does_not_make_long_prompts_cheap():
    table = parse_table(table_to_json(TABLE))
    prefill = table["prefill"]
    per_token = [(prefill.alone(2 * n) - prefill.alone(n)) / n for n in (512, 1024, 2048, 4096, 8192, 16384)]
    assert per_token[2:] == sorted(per_token[2:])
    assert per_token[-1] > JAGGED.coef[1]
    assert prefill.formula(FITTED_TOKENS, FITTED_TOKENS**2) == JAGGED.formula(FITTED_TOKENS, FITTED_TOKENS**2)
    whole, pieces = prefill.alone(8192), StepPrice(table).of(StepSums().with_piece(8192))
    assert whole <= pieces < 1.05 * whole
    raw = 0.133 + (8192 - 512) * 0.000247 - 2.8e-9 * (8192**2 - 512**2)
    assert whole > 1.1 * raw


def test_what_a_prefix_cache_spares_is_read_and_attended_to():
    whole, hit = request("a", 600), request("b", 600, cached=500)
    price = StepPrice(TABLE)
    seconds = step_seconds(TABLE, StepPlan("prefill", (hit,)))
    assert seconds == price.of(StepSums().with_piece(100, 500))
    assert TABLE["prefill"].alone(100) < seconds < step_seconds(TABLE, StepPlan("prefill", (whole,)))


def test_sums_of_a_plan():
    batch, pieces = (running("a", 10), running("b", 20)), (Piece(request("c", 90, done=30), 40), Piece(request("d"), 7))
    sums = step_sums(StepPlan("decode", batch, pieces=pieces))
    assert sums == StepSums(47, 40 * 40 + 49, 40 * 30, 1, 2, 11 + 21 + 30)


MIXED = MixedLatency(0.015, 6e-5, 1e-8, 4e-5, 1e-7)
MEASURED = replace(TABLE, mixed=MIXED)


def test_a_measured_module_prices_the_steps_with_pieces_only():
    plan = StepPlan("decode", (running("a", 100),), pieces=(Piece(request("c", 900, done=300), 512),))
    square = 512 * 512 + 2 * 512 * 300
    expected = 0.015 + 6e-5 * 513 + 1e-8 * square + 4e-5 + 1e-7 * (101 + 300)
    assert step_seconds(MEASURED, plan) == pytest.approx(expected)
    assert step_seconds(TABLE, plan) > 2 * expected
    small = StepPlan("decode", (running("a", 100),), pieces=(Piece(request("c"), 1),))
    assert step_seconds(MEASURED, small) == DECODE.predict(Shape(1, 0, 0, 101))
    batch = StepPlan("decode", (running("a", 100),))
    assert step_seconds(MEASURED, batch) == step_seconds(TABLE, batch)
    history = StepHistory(MEASURED)
    history.planned(plan)
    assert history.expected == step_seconds(MEASURED, plan)


@pytest.mark.parametrize("grid", [((), ()), ((16, 64), (0.01, 0.02))])
def test_a_measured_module_is_read_and_written(tmp_path, grid):
    table = replace(MEASURED, mixed=replace(MIXED, tokens=grid[0], seconds=grid[1]))
    save_table(table, tmp_path / "t.json")
    data = json.loads((tmp_path / "t.json").read_text())
    assert data["schema"] == 2
    loaded = load_table(tmp_path / "t.json")
    assert loaded.mixed == table.mixed
    assert list(loaded.modules) == ["prefill", "decode"]
    assert json.loads(json.dumps(table_to_json(loaded))) == data


def test_a_measured_grid_is_levelled_where_it_is_read():
    data = table_to_json(replace(MEASURED, mixed=replace(MIXED, tokens=(8, 16, 32), seconds=(0.1, 0.3, 0.2))))
    mixed = parse_table(data).mixed
    assert mixed is not None
    assert mixed.seconds == (0.1, 0.3, 0.3)
    assert mixed.predict(20, 0, 4, 0) == pytest.approx(0.3 + 4 * 4e-5)
    assert mixed.predict(30, 0, 4, 0) == pytest.approx(0.3 + 2 * 6e-5 + 4 * 4e-5)
    assert mixed.predict(3, 0, 4, 0) == pytest.approx(0.1 + 4 * 4e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "batch"}, r"modules\.mixed\.kind is 'batch', expected 'mixed'"),
        ({"coef": [1, 2]}, r"modules\.mixed\.coef has 2 entries, expected 5"),
        ({"coef": [0.1, 0.1, -1, 0, 0]}, r"modules\.mixed\.coef\[2\] is -1\.0, expected at least 0"),
        ({"coef": [0, 0, 0, 0, 0]}, r"expected its first or second number above 0"),
        ({"tokens": [4, 2], "seconds": [1, 1]}, r"modules\.mixed\.tokens\[1\] is 2, expected rising"),
    ],
)
def test_a_measured_module_that_cannot_be_is_refused(change, said):
    data = table_to_json(MEASURED)
    data["modules"]["mixed"] |= change
    with pytest.raises(TableError, match=said):
        parse_table(data)


def test_other_kinds_of_tables_have_no_such_price():
    table = LatencyTable("m", "d", {"prefill": BatchLatency((1,), (0.1,)), "decode": DECODE})
    with pytest.raises(ValueError, match="steps with pieces need a prefill by tokens"):
        StepPrice(table)
    history = StepHistory(table)
    history.planned(StepPlan("prefill", (request("a"),)))
    assert history.expected == 0.1
