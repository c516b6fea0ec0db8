"""Fits recover what the points were made from, and judge themselves by points they have not seen."""

import numpy as np
import pytest

from neusim.profiling.depth import extrapolate, to_full_depth
from neusim.profiling.fit import fit_batch, fit_decode, fit_mixed, fit_prefill, prefill_grid, rising, solve
from neusim.profiling.grid import FULL_PREFILL, QUICK_PREFILL, MixedShape, Point, llm_points, mixed_points
from neustream.latency import Shape


def prefill_shape(*lengths: int) -> Shape:
    return Point("prefill", lengths).shape


def decode_shape(batch: int, context: int) -> Shape:
    return Point("decode", (context,) * batch).shape


def prefill_seconds(shape: Shape) -> float:
    return 0.01 + 2e-4 * shape.work + 3e-7 * shape.work_squared


def decode_seconds(shape: Shape) -> float:
    return 0.02 + 0.001 * shape.batch**0.5 + 2e-6 * shape.context


PREFILLS = [point.shape for point in llm_points(quick=True, max_len=2000) if point.module == "prefill"]
DECODES = [point.shape for point in llm_points(quick=True, max_len=2000) if point.module == "decode"]


def test_prefill_coefficients_are_recovered_from_exact_points() -> None:
    model, report = fit_prefill({s: prefill_seconds(s) for s in PREFILLS}, {})
    assert model.coef == pytest.approx((0.01, 2e-4, 3e-7), rel=1e-6)
    assert report["r2"] == pytest.approx(1.0)
    assert report["worst_relative_error"] is None


def test_prefill_coefficients_survive_one_spoilt_point() -> None:
    points = {s: prefill_seconds(s) for s in PREFILLS}
    points[prefill_shape(*[65] * 8)] *= 3
    model, _ = fit_prefill(points, {})
    assert model.coef == pytest.approx((0.01, 2e-4, 3e-7), rel=0.1)


def test_prefill_noise_of_five_percent_leaves_predictions_within_five() -> None:
    noise = np.random.RandomState(0)
    points = {s: prefill_seconds(s) * noise.uniform(0.95, 1.05) for s in PREFILLS}
    unseen = {s: prefill_seconds(s) for s in (prefill_shape(300), prefill_shape(100, 50, 250))}
    _, report = fit_prefill(points, unseen)
    assert 0 < report["worst_relative_error"] < 0.05


def test_coefficients_are_never_negative() -> None:
    lengths = [16, 64, 256, 1024]
    a, b, c = solve([[1.0] * 4, lengths, [n * n for n in lengths]], [1e-3 * n**0.5 for n in lengths])
    assert min(a, b, c) >= 0


def test_a_grid_serves_where_the_formula_does_not_fit() -> None:
    stairs = {prefill_shape(n): 0.01 * -(-n // 64) + 1e-5 * n for n in range(16, 513, 16)}
    model, _ = fit_prefill(stairs, {})
    assert model.tokens[0] == 16
    assert model.predict(prefill_shape(128)) == pytest.approx(stairs[prefill_shape(128)])


def test_a_grid_ends_where_compositions_of_one_sum_differ() -> None:
    points = {prefill_shape(64): 1.0, prefill_shape(128): 2.0, prefill_shape(64, 64): 2.1}
    points |= {prefill_shape(256): 4.0, prefill_shape(*[64] * 4): 3.0, prefill_shape(512): 9.0}
    assert prefill_grid(points) == {64: 1.0, 128: 2.05}


def test_a_grid_ends_where_seconds_stop_rising() -> None:
    dip = {8: 1.0, 16: 1.2, 32: 1.1, 64: 3.0}
    assert prefill_grid({prefill_shape(n): seconds for n, seconds in dip.items()}) == {8: 1.0, 16: 1.2}


def test_decode_slope_and_bases_are_recovered() -> None:
    model, report = fit_decode({s: decode_seconds(s) for s in DECODES}, {})
    assert model.coef[1] == pytest.approx(2e-6, rel=1e-6)
    assert model.coef[0] == pytest.approx(0.021, rel=1e-6)
    for batch, base in zip(model.batch, model.seconds, strict=True):
        assert base == pytest.approx(0.02 + 0.001 * batch**0.5, rel=1e-6)
    assert report["levelled"] == 0


def test_held_out_decodes_judge_the_fit_and_do_not_enter_it() -> None:
    points = {s: decode_seconds(s) for s in DECODES}
    alone, _ = fit_decode(points, {})
    odd = decode_shape(8, 100)
    judged, report = fit_decode(points, {odd: 2 * decode_seconds(odd)})
    assert judged == alone
    assert report["worst_relative_error"] == pytest.approx(0.5, abs=0.01)


def test_batch_seconds_stay_as_measured_and_a_real_dip_stays() -> None:
    model, report = fit_batch({1: 1.0, 2: 2.0, 3: 1.5, 4: 2.5})
    assert (model.batch, model.seconds) == ((1, 2, 3, 4), (1.0, 2.0, 1.5, 2.5))
    assert report["levelled"] == 0


def test_dips_within_the_noise_are_levelled_and_counted() -> None:
    model, report = fit_batch({1: 1.0, 2: 1.02, 4: 0.98, 8: 2.0}, noise=0.05)
    assert model.seconds == (1.0, 1.0, 1.0, 2.0)
    assert report["levelled"] == 2


def test_a_batch_fit_is_judged_by_every_second_size() -> None:
    _, report = fit_batch({1: 1.0, 2: 3.0, 3: 3.0})
    assert (report["held_out"], report["worst_relative_error"]) == (1, pytest.approx(1 / 3, abs=1e-4))


def test_the_sizes_that_judge_a_batch_fit_do_not_enter_the_judge() -> None:
    """Size 2 is levelled with 3, which is no reason to predict 2 from what 2 has made of 3."""
    model, report = fit_batch({1: 1.0, 2: 2.0, 3: 1.96, 4: 3.0, 5: 4.0}, noise=0.05)
    assert model.seconds[1:3] == (1.98, 1.98)
    # From 1.0, 1.96 and 4.0: 1.48 for 2.0 and 2.98 for 3.0.
    assert (report["held_out"], report["points"], report["levelled"]) == (2, 5, 2)
    assert report["worst_relative_error"] == pytest.approx(0.52 / 2.0)
    assert report["median_relative_error"] == pytest.approx((0.26 + 0.02 / 3) / 2, abs=1e-4)


def test_r2_of_a_batch_fit_is_that_of_sizes_it_has_not_seen() -> None:
    zigzag = {1: 1.0, 2: 3.0, 3: 1.0, 4: 4.0, 5: 1.0}
    assert fit_batch(zigzag)[1]["r2"] == pytest.approx(1 - (2.0**2 + 3.0**2) / (2 * 0.5**2))
    straight = {size: 0.5 + 0.1 * size for size in range(1, 8)}
    assert fit_batch(straight)[1]["r2"] == pytest.approx(1.0)
    apart = {2: 1.5, 3: 2.0}
    assert fit_batch({1: 1.0, 4: 2.5}, held_out=apart)[1]["r2"] == pytest.approx(1.0)
    assert [fit_batch(points)[1]["r2"] for points in ({1: 1.0}, {1: 1.0, 2: 2.0, 3: 3.0})] == [None, None]


def test_rising_pools_a_chain_of_small_dips() -> None:
    assert rising([1.00, 0.99, 0.98], 0.02) == ([pytest.approx(0.99)] * 3, 2)


def test_full_depth_lies_on_the_line_through_two_depths() -> None:
    assert to_full_depth(5.0, 7.0, (2, 4), 40) == 43.0


def test_a_deeper_model_that_came_out_faster_counts_as_equal() -> None:
    assert to_full_depth(5.0, 4.9, (2, 4), 40) == 5.0


def test_extrapolation_recovers_a_model_that_is_linear_in_depth() -> None:
    def seconds(point: Shape, depth: int) -> float:
        return 0.003 + depth * prefill_seconds(point)

    shallow, deep = ({s: seconds(s, depth) for s in PREFILLS} for depth in (2, 4))
    full = extrapolate(shallow, deep, (2, 4), 24)
    assert full == pytest.approx({s: seconds(s, 24) for s in PREFILLS})


def test_points_have_names_that_differ_and_shapes_that_no_fit_mixes_up() -> None:
    for quick in (True, False):
        points = llm_points(quick=quick, max_len=2000)
        assert len({str(point) for point in points}) == len(points)
        assert len({(point.module, point.shape) for point in points}) == len(points)


def test_points_stay_within_what_the_cache_and_the_model_hold() -> None:
    points = llm_points(quick=False, max_len=200, max_tokens=1000)
    assert max(max(point.lengths) for point in points) <= 200
    assert max(sum(point.lengths) for point in points) <= 1000


def test_the_parts_of_a_prefill_add_up_to_the_sum_that_it_stands_for() -> None:
    for sums in (QUICK_PREFILL, FULL_PREFILL):
        assert [(total, batch) for total, batches in sums.items() for batch in batches if total % batch] == []


def mixed_seconds(shape: MixedShape) -> float:
    return 0.01 + 1e-4 * (shape.work + shape.decodes) + 2e-8 * shape.attended + 5e-5 * shape.decodes + 1e-7 * shape.read


def test_mixed_steps_are_fitted_and_judged_by_points_that_the_fit_has_not_seen() -> None:
    points = mixed_points(quick=False, max_len=2000, max_tokens=65536, max_work=2048)
    seen = {point.mixed_shape: mixed_seconds(point.mixed_shape) for point in points if not point.held_out}
    unseen = {point.mixed_shape: mixed_seconds(point.mixed_shape) for point in points if point.held_out}
    model, report = fit_mixed(seen, unseen)
    assert len(unseen) == report["held_out"] == 4
    assert report["worst_relative_error"] < 0.01
    assert report["r2"] > 0.9999
    assert model.square == pytest.approx(2e-8, rel=0.05)


def test_points_of_mixed_steps_keep_the_engines_limits_and_have_names_of_their_own() -> None:
    points = mixed_points(quick=True, max_len=600, max_tokens=3000, max_work=512)
    assert points
    for point in points:
        work, _, decodes, read = point.mixed_shape
        assert work + decodes <= 512
        assert read + work <= 3000
        assert all(tokens + done <= 600 for tokens, done in point.pieces)
    assert len({str(point) for point in points}) == len(points)
