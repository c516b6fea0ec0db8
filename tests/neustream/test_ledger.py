"""The ledger judges token times by the SLO's deadlines, with the core's own requests, and loses none of them."""

from __future__ import annotations

from typing import Any

import pytest

from neustream import LatencyTable, Outcome, Request
from neustream.latency import ContextLatency, TokensLatency
from neustream.ledger import Ledger

# Prefill of n tokens: 10 + n ms; decode: 20 ms.
TABLE = LatencyTable(
    "hand", "desk", {"prefill": TokensLatency((0.01, 0.001, 0.0)), "decode": ContextLatency((0.02, 0))}
)
SCALES = {"pslo": 3, "dslo": 1.5}
# A prompt of 10 tokens that arrives at 100: due at 100.06, then every 30 ms.
DEADLINES = [100.06, 100.09, 100.12]


def ledger(slo: Any = SCALES) -> Ledger[Request]:
    book: Ledger[Request] = Ledger(slo, TABLE)
    book.add("a", 100.0, 10, 3)
    return book


@pytest.mark.parametrize(
    ("times", "outcome", "on_time"),
    [
        (DEADLINES, Outcome.MET, 3),
        ([100.05, 100.0901, 100.11], Outcome.LATE, 2),
        ([100.07, 100.1, 100.13], Outcome.LATE, 0),
    ],
)
def test_tokens_on_or_before_their_deadline_count(times: list[float], outcome: Outcome, on_time: int) -> None:
    book = ledger()
    for known in range(1, 4):
        book.deliver("a", times[:known])
    request = book.end("a", times[-1])
    assert (request.outcome, request.units, request.units_on_time) == (outcome, 3, on_time)
    assert (request.ended_at, book.open) == (times[-1], {})


def test_a_request_stands_where_its_tokens_say_also_after_a_preemption() -> None:
    book = ledger()
    request = book.open["a"]
    book.preempt("a")  # it holds nothing yet
    assert (request.module, request.left) == ("prefill", [1, 2])
    book.deliver("a", DEADLINES[:2])
    assert (request.module, request.left, request.context, request.is_resident) == ("decode", [0, 1], 12, True)
    book.preempt("a")
    assert (request.module, request.left, request.pending, request.is_resident) == ("prefill", [1, 0], 12, False)
    book.deliver("a", DEADLINES)
    assert (request.units, request.left) == (3, [0, 0])
    book.preempt("nobody")


def test_predicts_a_step_from_the_tokens_before_it() -> None:
    book = ledger()
    book.add("b", 100.0, 30, 3)
    assert book.predict("prefill", ["a", "b"]) == pytest.approx(0.05)
    assert book.predict("decode", ["a", "b"]) == pytest.approx(0.02)
    assert book.predict("idle", []) is None
    assert book.predict("prefill", ["nobody"]) is None
    assert Ledger[Request]().predict("prefill", []) is None


def test_what_a_request_brings_goes_before_the_default() -> None:
    book = ledger()
    assert book.open["a"].deadlines.at(1) == pytest.approx(100.06)
    own = book.add("b", 100.0, 10, 3, slo={"ttft_ms": 500, "on_miss": "demote"}, slo_class="slow", width=2)
    assert (own.deadlines.at(1), own.on_miss, own.slo_class, own.width) == (100.5, "demote", "slow", 2)
    free = book.add("c", 100.0, 10, 3, slo={}, on_miss="demote")
    assert (free.deadlines.at(1), free.on_miss) == (float("inf"), "demote")


BAD: list[dict[str, Any]] = [
    {"slo": 5},
    {"slo": {5: 1}},
    {"slo": {"ttft_ms": 10**400}},
    {"slo": {"ttft_ms": float("nan")}},
    {"slo": {"ttft_ms": 5, "on_miss": "cry"}},
    {"slo": {"speed": 9}},
    {"arrival": "now"},
    {"max_tokens": 0},
    {"size": 0},
    {"request_id": "a"},
]


@pytest.mark.parametrize("wrong", BAD)
def test_what_cannot_be_understood_is_refused_and_nothing_is_opened(wrong: dict[str, Any]) -> None:
    book = ledger()
    before = dict(book.open)
    asked = {"request_id": "b", "arrival": 100.0, "size": 10, "max_tokens": 3} | wrong
    with pytest.raises(ValueError, match=r"\S") as caught:
        book.add(**asked)
    assert "\n" not in str(caught.value)
    assert book.open == before


def test_a_default_slo_is_checked_at_once() -> None:
    with pytest.raises(ValueError, match="SLO keys"):
        Ledger[Request]({"speed": 9})


def test_whatever_is_open_can_be_ended_together() -> None:
    book = ledger()
    book.add("b", 100.0, 30, 3)
    book.deliver("b", [100.01])
    ended = book.end_all(101.0, Outcome.ABORTED, "over")
    assert [(r.request_id, r.outcome, r.reason, r.units) for r in ended] == [
        ("a", Outcome.ABORTED, "over", 0),
        ("b", Outcome.ABORTED, "over", 1),
    ]
    assert book.end_all(102.0, Outcome.ABORTED, "over") == []
