"""The serving loop: whom it asks when, and that every request is accounted for once."""

from __future__ import annotations

import time
from typing import Any

import pytest
from exp_fakes import FakeDriver

from exp.harness.serving import BLINK, IDLE_WAIT, Interrupt, serve
from neustream.driver import Ask, Callbacks
from neustream.records import StepRecord
from neustream.request import Outcome, Request


class FakeClient:
    """Has sent all of its asks; notes how long it was waited for, and gives up after `patience` calls."""

    def __init__(self, asks: list[Ask], patience: int = 100) -> None:
        self.asks = asks
        self.patience = patience
        self.waits: list[float] = []
        self.is_done = False

    def receive(self, timeout: float = 0.0) -> list[Ask]:
        self.waits.append(timeout)
        asks, self.asks = self.asks, []
        self.is_done = True
        if len(self.waits) > self.patience:
            raise TimeoutError
        return asks


class IdleDriver(FakeDriver):
    """Steps that have nothing to run: `answers` in turn, then real ones."""

    def __init__(self, answers: list[StepRecord | None], wake: float | None = None) -> None:
        super().__init__(0.0, {})
        self.answers = answers
        self.wake = wake

    def step(self) -> StepRecord | None:
        return self.answers.pop(0) if self.answers else super().step()


ASKS = [Ask("a", 0.0, {"slo": 10.0}), Ask("b", 0.0, {"slo": 10.0})]
NOBODY = StepRecord(0.0, "idle", (), 0.001)


def waits_of(driver: FakeDriver) -> list[float]:
    client: Any = FakeClient(list(ASKS))
    serve(driver, client, Callbacks(), Interrupt())
    return list(client.waits)


def test_a_busy_engine_is_never_kept_waiting_for_arrivals() -> None:
    assert waits_of(FakeDriver(0.0, {})) == [IDLE_WAIT, 0.0]


def test_an_engine_with_nothing_to_run_waits_for_an_arrival_or_for_its_wake() -> None:
    assert waits_of(IdleDriver([None]))[:3] == [IDLE_WAIT, IDLE_WAIT, 0.0]
    _, wait, *_ = waits_of(IdleDriver([None], wake=time.time() + 3600.0))
    assert wait == IDLE_WAIT, "Ctrl-C is looked for meanwhile"
    _, wait, *_ = waits_of(IdleDriver([None], wake=time.time() + IDLE_WAIT / 2))
    assert BLINK <= wait <= IDLE_WAIT / 2
    assert waits_of(IdleDriver([None], wake=1.0))[1] == BLINK
    assert waits_of(IdleDriver([NOBODY]))[1] == BLINK
    assert waits_of(IdleDriver([NOBODY], wake=time.time() + 3600.0))[1] == IDLE_WAIT


def test_observers_hear_of_a_step_before_the_ends_that_it_brought() -> None:
    heard: list[str] = []
    observer = Callbacks(lambda request: heard.append(request.request_id), lambda record: heard.append(record.kind))
    client: Any = FakeClient(list(ASKS))
    serve(FakeDriver(0.0, {}), client, observer, Interrupt())
    assert heard == ["work", "work", "a", "b"]


def test_requests_that_ended_in_a_step_that_then_failed_are_told_of_once() -> None:
    class Failing(FakeDriver):
        def step(self) -> StepRecord | None:
            self.requests[0].end(time.time(), Outcome.FAILED, "its own fault")
            self.ended.append(self.requests.pop(0))
            raise RuntimeError("out of luck")

    ended: list[Request] = []
    client: Any = FakeClient(list(ASKS))
    with pytest.raises(RuntimeError, match="out of luck"):
        serve(Failing(0.0, {}), client, Callbacks(ended.append), Interrupt())
    assert [(request.request_id, str(request.outcome)) for request in ended] == [("a", "failed"), ("b", "aborted")]


def test_what_is_open_when_the_client_fails_is_withdrawn_and_told_of() -> None:
    ended: list[Request] = []
    driver = IdleDriver([NOBODY] * 10)
    client: Any = FakeClient(list(ASKS), patience=3)
    with pytest.raises(TimeoutError):
        serve(driver, client, Callbacks(ended.append), Interrupt())
    assert [request.outcome for request in ended] == [Outcome.ABORTED] * 2
    assert driver.num_unfinished == 0
