"""Measuring: order of the visits, warm-up, which visits count, and what an interruption leaves behind."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from neusim.profiling.measure import disturbed, measure, medians, spread, trusted
from neusim.profiling.visits import Partial, Visit, believed, partial_path
from neustream.cli.disturbance import waited_seconds

SETTINGS = {"model": "tiny", "layers": (2, 4)}
BARE_NUMBER = '{"settings": {"model": "tiny", "layers": [2, 4]}, "visits": {"1": [3]}}'


class Runner:
    """Returns scripted seconds, and remembers what it was asked to run."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.log: list[int] = []
        self.stop_at = stop_at

    def __call__(self, point: int) -> Sequence[float]:
        if len(self.log) == self.stop_at:
            raise KeyboardInterrupt
        self.log.append(point)
        return [1.0 * point, 3.0 * point, 2.0 * point]


@pytest.fixture(autouse=True)
def _idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neusim.profiling.measure.waited_seconds", lambda: 0.0)


def test_passes_are_interleaved_after_one_warm_up_run_of_each_point() -> None:
    runner = Runner()
    visits = measure([1, 2], runner, repeats=2, progress=False)
    assert runner.log == [1, 1, 2, 2, 1, 2]
    assert visits == {1: [(2.0, 0.0)] * 2, 2: [(4.0, 0.0)] * 2}


def test_warm_up_can_be_left_out() -> None:
    runner = Runner()
    measure([1, 2], runner, repeats=1, warmup=0, progress=False)
    assert runner.log == [1, 2]


def test_a_point_that_used_up_its_time_is_visited_once() -> None:
    runner = Runner()
    visits = measure([1, 2], runner, repeats=5, seconds_per_point=0.0, progress=False)
    assert runner.log == [1, 2]
    assert [len(found) for found in visits.values()] == [1, 1]


def test_an_interrupted_run_is_resumed_with_the_rest_only(tmp_path: Path) -> None:
    path = partial_path(tmp_path / "tiny.json")
    with pytest.raises(KeyboardInterrupt):
        measure([1, 2, 3], Runner(stop_at=5), repeats=2, warmup=0, partial=Partial(path, SETTINGS), progress=False)
    second = Runner()
    kept = Partial(path, SETTINGS)
    assert kept.num_visits == 5
    visits = measure([1, 2, 3], second, repeats=2, warmup=0, partial=kept, progress=False)
    assert second.log == [3]
    assert medians(visits) == {1: 2.0, 2: 4.0, 3: 6.0}
    kept.discard()
    assert list(tmp_path.iterdir()) == []


def test_visits_made_under_other_settings_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "visits"
    kept = Partial(path, SETTINGS)
    kept.add("1", Visit(9.0))
    kept.save()
    assert Partial(path, SETTINGS).num_visits == 1
    assert Partial(path, SETTINGS | {"model": "other"}).num_visits == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", BARE_NUMBER])
def test_a_damaged_file_of_visits_is_not_used(tmp_path: Path, text: str) -> None:
    path = tmp_path / "visits"
    path.write_text(text)
    assert Partial(path, SETTINGS).num_visits == 0


def test_points_whose_names_are_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        measure([1, 1], Runner(), repeats=1)


def waiting(shares: list[float]) -> Callable[[], float]:
    """A counter of waited seconds that rises by a huge or no amount across each run, as scripted."""
    readings = [value for share in shares for value in (0.0, share * 1e6)]
    return lambda: readings.pop(0)


def test_a_disturbed_visit_is_made_up_for_and_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neusim.profiling.measure.waited_seconds", waiting([1.0, 0.0, 0.0]))
    seconds = iter([[50.0], [2.0], [2.2]])
    visits = measure([7], lambda point: next(seconds), repeats=2, warmup=0, progress=False)
    assert [visit.seconds for visit in visits[7]] == [50.0, 2.0, 2.2]
    assert medians(visits) == {7: pytest.approx(2.1)}
    assert disturbed(visits) == 0.0


def test_a_machine_that_is_never_calm_does_not_keep_a_profile_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neusim.profiling.measure.waited_seconds", waiting([1.0] * 6))
    visits = measure([7], lambda point: [1.0], repeats=2, warmup=0, progress=False)
    assert len(visits[7]) == 6
    assert disturbed(visits) == 1.0


def test_the_calmest_visit_stands_where_none_was_calm() -> None:
    assert believed([Visit(9.0, 3.0), Visit(5.0, 0.4), Visit(4.0, 0.9)]) == [5.0]


def test_points_never_timed_undisturbed_are_left_out_while_half_remain() -> None:
    calm, busy = [Visit(1.0)], [Visit(9.0, 2.0)]
    assert trusted({1: calm, 2: busy}) == {1: 1.0}
    assert trusted({1: calm, 2: busy, 3: busy}) == {1: 1.0, 2: 9.0, 3: 9.0}


def test_spread_is_the_range_of_calm_visits_over_their_median() -> None:
    visits = {1: [Visit(1.0), Visit(1.2), Visit(9.0, 2.0)], 2: [Visit(5.0)]}
    assert spread(visits) == pytest.approx(0.2 / 1.1)
    assert spread({2: [Visit(5.0)]}) == 0.0


def test_waiting_for_a_core_is_counted_upwards() -> None:
    before = waited_seconds()
    assert 0.0 <= before <= waited_seconds()
