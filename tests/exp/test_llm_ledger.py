"""The ledger judges token times by the SLO's deadlines, with the core's own requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fake_vllm import TABLE, output

from exp.llm.ledger import Ledger
from neustream import Outcome, parse_slo

SCALES = parse_slo({"pslo": 3, "dslo": 1.5})
# A prompt of 10 tokens that arrives at 100: due at 100.06, then every 30 ms.
DEADLINES = [100.06, 100.09, 100.12]


def ledger() -> Ledger:
    book = Ledger(SCALES, TABLE, max_tokens=3)
    book.add("a", 100.0, 10)
    return book


def delivered(times: list[float], finished: bool = True, reason: str = "length", deadlines: Any = None) -> Any:
    return output("a", SimpleNamespace(token_times=times, deadlines=deadlines), finished, reason)


@pytest.mark.parametrize(
    ("times", "outcome", "on_time"),
    [
        (DEADLINES, Outcome.MET, 3),
        ([100.05, 100.0901, 100.11], Outcome.LATE, 2),
        ([100.07, 100.1, 100.13], Outcome.LATE, 0),
    ],
)
def test_tokens_on_or_before_their_deadline_count(times: list[float], outcome: Outcome, on_time: int) -> None:
    request = ledger().update(delivered(times))
    assert request is not None
    assert (request.outcome, request.units_on_time, request.ended_at) == (outcome, on_time, times[-1])


def test_tokens_come_step_by_step() -> None:
    book = ledger()
    times: list[float] = []
    for moment in DEADLINES[:2]:
        times.append(moment)
        assert book.update(delivered(times, finished=False)) is None
    assert book.open["a"].units == 2
    request = book.update(delivered([*times, 100.2]))
    assert request is not None
    assert (request.units, request.units_on_time, request.outcome) == (3, 2, Outcome.LATE)
    assert book.open == {}


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [("timeout", Outcome.REJECTED), ("abort", Outcome.ABORTED), ("length", Outcome.FAILED)],
)
def test_what_ends_without_all_its_tokens_is_a_miss(reason: str, outcome: Outcome) -> None:
    request = ledger().update(delivered([100.01], reason=reason))
    assert request is not None
    assert (request.outcome, request.units) == (outcome, 1)


def test_the_policys_deadlines_must_be_those_that_are_accounted() -> None:
    assert ledger().update(delivered(DEADLINES, deadlines=DEADLINES)) is not None
    with pytest.raises(RuntimeError, match=r"took token 2 to be due \+0\.010000 s from what is accounted"):
        ledger().update(delivered(DEADLINES, deadlines=[100.06, 100.10, 100.12]))


def test_predicts_a_step_from_the_tokens_before_it() -> None:
    book = ledger()
    book.add("b", 100.0, 30)
    assert book.predict("prefill", ["a", "b"]) == pytest.approx(0.05)
    assert book.predict("decode", ["a", "b"]) == pytest.approx(0.02)
    assert book.predict("idle", []) is None


def test_what_is_open_at_the_end_is_aborted() -> None:
    book = ledger()
    book.update(delivered([100.05], finished=False))
    (request,) = book.abort_all()
    assert (request.outcome, request.units, request.units_on_time) == (Outcome.ABORTED, 1, 1)
    assert book.abort_all() == []
