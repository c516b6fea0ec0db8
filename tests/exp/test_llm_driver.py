"""The driver of the patched vLLM on a fake engine: every request comes out once, judged by the driver's own ledger."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fake_vllm import TABLE, FakeVllm, output

from neustream import Outcome
from neustream.driver import Ask, Driver, HasResults, TellsProgress
from vllm_patch.driver import VllmDriver

SLO = {"pslo": 3, "dslo": 1.5}
# A prompt of 10 tokens that arrives at 100: due at 100.06, then every 30 ms.
DEADLINES = [100.06, 100.09, 100.12]


def ask(name: str, max_tokens: int = 3, **more: Any) -> Ask:
    return Ask(name, 100.0, ([5] * 10, max_tokens), **more)


def driver_of(engine: Any, **options: Any) -> VllmDriver:
    return VllmDriver(engine, table=TABLE, slo=SLO, params=lambda max_tokens: max_tokens, **options)


def scripted(*steps: list[Any], error: Exception | None = None) -> tuple[VllmDriver, FakeVllm]:
    """A driver of an engine whose steps give these outputs, and then raise `error`."""
    engine = FakeVllm()
    left = list(steps)

    def step() -> list[Any]:
        if not left and error is not None:
            raise error
        return left.pop(0)

    engine.step = step  # type: ignore[method-assign]
    return driver_of(engine), engine


def delivered(name: str, times: list[float], reason: str | None = "length", deadlines: Any = None) -> Any:
    return output(name, SimpleNamespace(token_times=times, deadlines=deadlines), reason is not None, reason or "")


def ends(driver: Driver) -> dict[str, tuple[str, int]]:
    return {request.request_id: (str(request.outcome), request.units) for request in driver.take_ended()}


def test_serves_what_is_submitted_and_records_each_step() -> None:
    driver: Driver = driver_of(FakeVllm(reject={"c"}))
    assert driver.step() is None
    for name in "abc":
        driver.submit(ask(name))
    records = []
    while driver.num_unfinished:
        record = driver.step()
        assert record is not None
        records.append(record)
    assert [(record.kind, record.request_ids, record.rejected) for record in records] == [
        ("prefill", ("a",), ("c",)),
        ("prefill", ("b",), ()),
        ("decode", ("a", "b"), ()),
        ("decode", ("a", "b"), ()),
    ]
    assert [record.predicted_seconds for record in records] == pytest.approx([0.02, 0.02, 0.02, 0.02])
    assert records[0].extra == {"tokens": 1, "num_running": 1, "num_swapped": 0, "num_preempted": 0}
    assert ends(driver) == {"a": ("late", 3), "b": ("late", 3), "c": ("rejected", 0)}
    assert driver.take_ended() == []
    assert (driver.step(), driver.wake) == (None, None)


def test_tokens_are_told_as_they_come_and_handed_out_with_the_end() -> None:
    driver = driver_of(FakeVllm(reject={"c"}))
    for name in "abc":
        driver.submit(ask(name))
    told: list[tuple[str, int, Any]] = []
    made: dict[str, Any] = {}
    while driver.num_unfinished:
        driver.step()
        told += driver.take_progress()
        made.update({request.request_id: driver.take_result(request.request_id) for request in driver.take_ended()})
    assert told == [("a", 1, (10,)), ("b", 1, (10,)), ("a", 2, (11,)), ("b", 2, (11,))]
    assert made == {"a": (10, 11, 12), "b": (10, 11, 12), "c": None}
    driver.take_ended()
    assert driver.take_result("a") is None
    assert isinstance(driver, HasResults)
    assert isinstance(driver, TellsProgress)


@pytest.mark.parametrize(
    ("reason", "times", "outcome"),
    [
        ("timeout", [100.01], Outcome.REJECTED),
        ("abort", [100.01], Outcome.ABORTED),
        ("length", [100.01], Outcome.FAILED),
        ("length", [], Outcome.FAILED),
        ("stop", [100.01], Outcome.MET),
        ("length", DEADLINES, Outcome.MET),
        ("length", [100.05, 100.0901, 100.11], Outcome.LATE),
    ],
)
def test_an_end_is_judged_by_its_reason_and_its_tokens(reason: str, times: list[float], outcome: Outcome) -> None:
    driver, _ = scripted([delivered("a", times, reason)])
    driver.submit(ask("a"))
    driver.step()
    assert ends(driver) == {"a": (str(outcome), len(times))}


def test_what_is_prefilled_again_was_preempted() -> None:
    """Also under stock vLLM, which tells nobody: its prompt and its tokens are predicted anew."""
    engine = FakeVllm(has_policy=False)
    driver = driver_of(engine)
    driver.submit(ask("a"))
    driver.step()
    driver.step()
    engine.preempted.add("a")
    record = driver.step()
    assert record is not None
    assert (record.kind, record.predicted_seconds) == ("prefill", pytest.approx(0.01 + 12 * 0.001))
    assert ends(driver) == {"a": ("late", 3)}


def test_the_policys_deadlines_must_be_those_that_are_accounted() -> None:
    driver, _ = scripted([delivered("a", DEADLINES, deadlines=DEADLINES)])
    driver.submit(ask("a"))
    driver.step()
    assert ends(driver) == {"a": ("met", 3)}


def test_a_wrong_deadline_loses_nobody() -> None:
    wrong = delivered("b", DEADLINES, deadlines=[100.06, 100.10, 100.12])
    driver, engine = scripted([delivered("a", DEADLINES), wrong, delivered("c", DEADLINES)])
    for name in "abcd":
        driver.submit(ask(name))
    with pytest.raises(RuntimeError, match=r"took token 2 to be due \+0\.010000 s from what is accounted"):
        driver.step()
    assert driver.num_unfinished == 2
    driver.abort_all("over")
    assert engine.aborted == ["b", "d"]
    assert ends(driver) == {"a": ("met", 3), "c": ("met", 3), "b": ("aborted", 3), "d": ("aborted", 0)}


def test_an_engine_that_failed_is_left_alone_and_everybody_is_accounted_for() -> None:
    driver, engine = scripted([delivered("a", DEADLINES), delivered("b", DEADLINES[:1], None)], error=OSError("gone"))
    driver.submit(ask("a"))
    driver.submit(ask("b"))
    driver.step()
    with pytest.raises(OSError, match="gone"):
        driver.step()
    driver.close()
    assert engine.aborted == []
    assert ends(driver) == {"a": ("met", 3), "b": ("aborted", 1)}


def test_a_bad_ask_is_refused_and_the_others_are_unharmed() -> None:
    engine = FakeVllm()
    driver = driver_of(engine)
    driver.submit(ask("a"))
    bad = [ask("a"), ask("b", slo={"speed": 9}), ask("b", slo={5: 1}), ask("b", 0), Ask("b", 100.0, None)]
    for wrong in bad:
        with pytest.raises(ValueError, match=r"\S"):
            driver.submit(wrong)
    engine.add_request = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError):
        driver.submit(ask("c"))
    assert (driver.num_unfinished, list(engine.added)) == (1, ["a"])


def test_only_a_policy_is_told_of_slos() -> None:
    told = {}
    for has_policy in (True, False):
        engine = FakeVllm(has_policy=has_policy)
        driver = driver_of(engine)
        driver.submit(ask("a"))
        driver.submit(ask("b", slo={"ttft_ms": 5}, on_miss="demote"))
        told[has_policy] = [options.get("slo") for options in engine.added.values()]
    assert told == {
        True: [{**SLO, "on_miss": "reject"}, {"ttft_ms": 5, "on_miss": "demote"}],
        False: [None, None],
    }


def test_a_driver_takes_an_idle_engine_and_begins_a_history() -> None:
    engine = FakeVllm()
    first = driver_of(engine)
    first.submit(ask("a"))
    with pytest.raises(ValueError, match="not idle"):
        driver_of(engine)
    first.abort("nobody")
    first.abort("a", "gone")
    assert [(r.request_id, r.reason) for r in first.take_ended()] == [("a", "gone")]
    driver_of(engine)
    assert engine.scheduler[0].step_policy.resets == 2


def test_wake_is_the_policys_while_something_waits() -> None:
    engine = FakeVllm()
    driver = driver_of(engine)
    engine.scheduler[0].step_policy.wake = 123.0
    assert driver.wake is None
    driver.submit(ask("a"))
    assert driver.wake == 123.0
