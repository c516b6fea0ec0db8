"""A driver in its thread: what goes in comes out once, in batches, whatever the driver does. No Ray."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import pytest
from replica_helpers import LLM, TOOLS, wait_for

from neuserve.replicas.engine_loop import EngineLoop
from neuserve.replicas.messages import Begun, Broken, Call, Ended, Event, Grown
from neuserve.replicas.stand_in import StandIn, build
from neustream.records import StepRecord
from neustream.request import Outcome


class Bench:
    """An engine loop and what it has told."""

    def __init__(self, make: Any = lambda: build(LLM)) -> None:
        self.events: list[Event] = []
        self.loop = EngineLoop(make, self.events.extend)
        self.loop.start()

    def of(self, call: str) -> list[Event]:
        return [event for event in self.events if getattr(event, "call", None) == call]

    def end(self, call: str) -> Ended:
        return wait_for(lambda: [e for e in self.of(call) if isinstance(e, Ended)], f"{call} has ended")[0]

    def kinds(self, call: str) -> list[str]:
        return [type(event).__name__ for event in self.of(call)]


@pytest.fixture
def bench():
    made: list[Bench] = []

    def make(*arguments: Any) -> Bench:
        made.append(Bench(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.loop.close(10.0)
        assert not one.loop._thread.is_alive()


def payload(units: int = 4, **more: Any) -> dict[str, Any]:
    return {"size": 10, "units": units, **more}


def test_a_call_is_told_from_its_begin_to_its_end(bench):
    one = bench()
    one.loop.take(Call("a", payload(result="text")))
    end = one.end("a")
    assert (end.outcome, end.units, end.result, end.reason) == (Outcome.MET, 4, "text", None)
    assert end.first is not None
    assert 0 < end.first <= end.seconds
    assert one.kinds("a") == ["Begun", "Grown", "Grown", "Grown", "Ended"]
    assert [(e.units, e.output) for e in one.of("a") if isinstance(e, Grown)] == [(1, 1), (2, 1), (3, 1)]


def test_many_calls_from_many_threads_end_once_each(bench):
    one = bench()
    names = [f"{thread}-{i}" for thread in range(4) for i in range(25)]
    takers = [
        threading.Thread(target=lambda t=t: [one.loop.take(Call(f"{t}-{i}", payload(2))) for i in range(25)])
        for t in range(4)
    ]
    for taker in takers:
        taker.start()
    wait_for(lambda: one.loop.outcomes["met"] == 100, "all have ended")
    ends = wait_for(lambda: len(e := [e for e in one.events if isinstance(e, Ended)]) == 100 and e, "all were told")
    assert Counter(end.call for end in ends) == Counter(names)
    assert one.loop.stats()["num_live"] == 0


def test_a_call_that_cannot_be_served_fails_alone(bench):
    one = bench()
    one.loop.take(Call("bad", "no mapping"))
    one.loop.take(Call("odd", payload(), {"ttft": 1}))
    one.loop.take(Call("good", payload()))
    assert one.end("good").outcome is Outcome.MET
    assert (one.end("bad").outcome, one.end("bad").reason) == (
        Outcome.FAILED, "its payload must be a mapping with keys among crash, fail, result, size, units",
    )  # fmt: skip
    assert (one.end("odd").reason or "").startswith("SLO keys must be among")


def test_deadlines_that_cross_as_remaining_seconds_judge_the_call(bench):
    one = bench()
    one.loop.take(Call("late", payload(), {"due_s": -1.0, "pace_s": 5_000.0}))
    one.loop.take(Call("met", payload(), {"due_s": 5_000.0, "pace_s": 5_000.0}))
    assert (one.end("late").outcome, one.end("late").units_on_time) == (Outcome.LATE, 3)
    assert (one.end("met").outcome, one.end("met").units_on_time) == (Outcome.MET, 4)


def test_what_a_call_has_waited_before_it_came_counts(bench):
    one = bench()
    one.loop.take(Call("a", payload(), {"ttft_ms": 1_000_000.0}, waited=2_000.0))
    one.loop.take(Call("b", payload(), {"ttft_ms": 1_000_000.0}, waited=10.0))
    assert (one.end("a").outcome, one.end("b").outcome) == (Outcome.LATE, Outcome.MET)
    assert one.end("a").seconds < 1_000.0


def test_a_withdrawn_call_is_told_no_more_also_if_it_is_withdrawn_before_it_comes(bench):
    one = bench()
    one.loop.take(Call("long", payload(100_000)))
    wait_for(lambda: one.of("long"), "it has begun")
    one.loop.withdraw("long", "no longer wanted")
    one.loop.withdraw("early", "no longer wanted")
    one.loop.take(Call("early", payload()))
    one.loop.take(Call("other", payload()))
    assert one.end("other").outcome is Outcome.MET
    assert "Ended" not in one.kinds("long")
    assert one.of("early") == []
    assert one.loop.outcomes == {"aborted": 1, "met": 1}


def test_a_reset_drops_everything(bench):
    one = bench()
    for i in range(20):
        one.loop.take(Call(str(i), payload(100_000)))
    wait_for(lambda: len(one.events) > 20, "they have begun")
    one.loop.reset().result(60.0)
    num_events = len(one.events)
    one.loop.take(Call("new", payload(2)))
    assert one.end("new").outcome is Outcome.MET
    assert {event.call for event in one.events[num_events:]} == {"new"}  # type: ignore[union-attr]


class Breaks(StandIn):
    """Breaks in the step with which its first request ends."""

    def step(self) -> StepRecord | None:
        record = super().step()
        if self._ended:
            raise RuntimeError("device lost\nat line 3")
        return record


def test_an_engine_that_breaks_tells_what_has_ended_and_that_it_is_broken(bench):
    one = bench(lambda: Breaks(LLM, "fcfs", 1.0, 1))
    one.loop.take(Call("first", payload(1)))
    one.loop.take(Call("second", payload(100_000)))
    wait_for(lambda: one.events and isinstance(one.events[-1], Broken), "it is broken")
    assert one.end("first").outcome is Outcome.MET
    assert [e.reason for e in one.events if isinstance(e, Broken)] == ["RuntimeError: device lost at line 3"]
    assert "Ended" not in one.kinds("second")
    assert one.loop.error == "RuntimeError: device lost at line 3"


def test_a_driver_that_cannot_be_made_says_why():
    def make() -> StandIn:
        return build(LLM, speed=-1.0)

    one = Bench(make)
    with pytest.raises(ValueError, match="speed must be above 0"):
        one.loop.ready.result(60.0)
    one.loop.close()


def test_an_idle_loop_neither_steps_nor_keeps_its_owner_waiting():
    one = Bench(lambda: build(TOOLS))
    one.loop.ready.result(60.0)
    time.sleep(0.05)
    assert (one.loop.num_steps, one.events) == (0, [])
    one.loop.take(Call("a", {}))
    assert one.end("a").outcome is Outcome.MET
    assert [type(event) for event in one.events] == [Begun, Ended]
    one.loop.close(60.0)
    assert not one.loop._thread.is_alive()
