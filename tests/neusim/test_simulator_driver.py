"""The simulated device as a driver: what goes in comes out once, bad asks harm nobody, time passes as it should."""

from __future__ import annotations

import pytest

from neusim.sim import Device, SimulatedDriver, SimulatedRequest
from neustream import LatencyTable, Outcome, Request
from neustream.driver import Ask, Callbacks
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.policies.clockwork import Clockwork
from neustream.policies.fcfs import Fcfs
from neustream.policies.fcfs_loop import FcfsLoop
from neustream.route import llm_route, pipeline_route
from neustream.slo import NO_DEADLINES, AbsoluteSlo

LLM = LatencyTable("m", "d", {"prefill": TokensLatency((1.0, 0.0, 0.0)), "decode": ContextLatency((0.5, 0.0))})
IMAGES = LatencyTable("i", "d", {"denoise": BatchLatency((1, 2), (1.0, 1.0)), "vae": BatchLatency((1, 2), (1.0, 1.0))})


def prompt(name: str, arrival: float = 0.0, tokens: int = 3, **fields) -> Ask:
    return Ask(name, arrival, SimulatedRequest(llm_route(tokens), 16), **fields)


def image(name: str, arrival: float = 0.0) -> Ask:
    return Ask(name, arrival, SimulatedRequest(pipeline_route(IMAGES.modules, 1)))


def llm_driver(**options) -> SimulatedDriver:
    return SimulatedDriver(LLM, Device(**options), Fcfs)


def steps_of(driver: SimulatedDriver) -> list[tuple[float, float, str, tuple[str, ...]]]:
    """Run it until nothing is left; `(start, end, kind, ids)` of each step."""
    steps = []
    while driver.num_unfinished:
        record = driver.step()
        if record is not None:
            steps.append((record.time, record.time + record.seconds, record.kind, record.request_ids))
        elif driver.num_unfinished:
            assert driver.wake is not None
            driver.wait(driver.wake)
    return steps


def test_a_step_passes_its_time_and_its_record_says_who_waited_and_what_was_expected():
    driver = llm_driver(max_num_seqs=1, overhead=0.25, slowness=2.0)
    driver.submit(prompt("a", slo={"ttft_ms": 5000}))
    driver.submit(prompt("b", slo={"ttft_ms": 5000}))
    record = driver.step()
    assert record is not None
    assert driver.now == 2.25
    assert (record.time, record.kind, record.request_ids, record.seconds) == (0.0, "prefill", ("a",), 2.25)
    assert (record.schedule_seconds, record.decision_seconds, record.predicted_seconds) == (0.25, 0.0, 1.0)
    assert (record.num_waiting, record.rest_seconds) == (1, (5.0,))
    assert record.extra == {"num_queued": 2, "num_passed_over": 0}


def test_time_passes_no_further_than_the_client_lets_it_while_nothing_runs():
    driver = llm_driver()
    driver.submit(prompt("later", arrival=10.0, tokens=1))
    assert driver.step() is None
    assert (driver.now, driver.wake, driver.num_unfinished) == (0.0, 10.0, 1)
    driver.wait(4.0)
    driver.submit(prompt("first", arrival=4.0, tokens=1))
    assert steps_of(driver) == [(4.0, 5.0, "prefill", ("first",)), (10.0, 11.0, "prefill", ("later",))]
    assert [request.request_id for request in driver.take_ended()] == ["first", "later"]
    assert driver.take_ended() == []
    assert driver.wake is None


def test_processes_overlap_and_a_request_under_way_between_them_is_waited_for():
    driver = SimulatedDriver(IMAGES, Device(layout="process", handover=0.25, contention="none"), FcfsLoop)
    driver.submit(image("a"))
    driver.submit(image("b", arrival=0.5))
    assert steps_of(driver) == [
        (0.0, 1.0, "denoise", ("a",)),
        (1.0, 2.0, "denoise", ("b",)),
        (1.25, 2.25, "vae", ("a",)),
        (2.25, 3.25, "vae", ("b",)),
    ]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask("bad", 0.0, [1, 2, 3]), "its payload must be a SimulatedRequest"),
        (prompt("good"), "request id 'good' is in use"),
        (prompt("bad", slo={"speed": 3}), "SLO keys must be among"),
        (image("bad"), "has no module 'denoise'"),
    ],
)
def test_a_bad_ask_is_refused_and_harms_nobody(ask, message):
    driver = llm_driver()
    driver.submit(prompt("good", tokens=2))
    with pytest.raises(ValueError, match=message):
        driver.submit(ask)
    assert [step[2:] for step in steps_of(driver)] == [("prefill", ("good",)), ("decode", ("good",))]
    assert [(r.request_id, r.outcome) for r in driver.take_ended()] == [("good", Outcome.MET)]


def test_a_request_is_withdrawn_wherever_it_is_and_comes_out_once():
    driver = llm_driver(max_num_seqs=1)
    for ask in (prompt("running"), prompt("waiting"), prompt("coming", arrival=9.0)):
        driver.submit(ask)
    assert driver.step() is not None
    driver.abort("waiting", "enough")
    driver.abort("coming")
    driver.abort("unknown")
    assert [(r.request_id, r.outcome, r.reason, r.ended_at) for r in driver.take_ended()] == [
        ("waiting", Outcome.ABORTED, "enough", 1.0), ("coming", Outcome.ABORTED, "aborted", 1.0),
    ]  # fmt: skip
    driver.submit(prompt("coming", arrival=9.0, tokens=1))  # its id is free again
    assert steps_of(driver)[-1] == (9.0, 10.0, "prefill", ("coming",))
    assert [r.request_id for r in driver.take_ended()] == ["running", "coming"]
    driver.check_integrity()


def test_closing_withdraws_what_is_open_also_between_two_processes():
    driver = SimulatedDriver(IMAGES, Device(layout="process", handover=5.0), FcfsLoop)
    driver.submit(image("a"))
    driver.submit(image("b", arrival=3.0))
    assert driver.step() is not None
    driver.close()
    assert {r.request_id: r.outcome for r in driver.take_ended()} == {"a": Outcome.ABORTED, "b": Outcome.ABORTED}
    assert driver.num_unfinished == 0
    driver.check_integrity()


def test_a_policy_that_waits_is_asked_again_when_it_said():
    class Late(Clockwork):
        def plan(self, now, streams, limits):
            plan = super().plan(now, streams, limits)
            return plan if now >= 2.0 else type(plan)(wake=2.0)

    driver = SimulatedDriver(IMAGES, Device(), lambda: Late(IMAGES))
    driver.submit(image("a"))
    assert driver.step() is None
    assert (driver.now, driver.wake) == (0.0, 2.0)
    driver.wait(1.0)
    driver.submit(image("b", arrival=1.0))
    assert steps_of(driver)[0] == (2.0, 3.0, "denoise", ("a", "b"))


def test_observers_of_a_run_hear_of_every_step_and_every_end_of_requests_made_as_they_arrive():
    heard: list[str] = []
    made: list[str] = []

    def requests():
        for i in range(3):
            made.append(f"made {i}")
            yield Request(str(i), 2.0 * i, AbsoluteSlo(9.0).bind(2.0 * i, llm_route(2), 16, None), llm_route(2), 16)

    def ended(request):
        heard.append(f"{request.request_id} ended, {len(made)} made")

    llm_driver().run(requests(), Callbacks(ended, lambda step: heard.append(f"{step.kind} of {step.request_ids[0]}")))
    assert heard == [
        "prefill of 0", "decode of 0", "0 ended, 2 made",
        "prefill of 1", "decode of 1", "1 ended, 3 made",
        "prefill of 2", "decode of 2", "2 ended, 3 made",
    ]  # fmt: skip


def test_requests_out_of_order_are_refused():
    requests = [Request(name, at, NO_DEADLINES, llm_route(1), 16) for name, at in (("a", 3.0), ("b", 1.0))]
    with pytest.raises(ValueError, match="before the one ahead of it"):
        llm_driver().run(iter(requests), Callbacks())
