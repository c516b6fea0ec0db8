"""The simulated engine: outputs that end early, requests that are withdrawn, several engines on one queue."""

from __future__ import annotations

from neusim.sim import Device, SimulatedDriver
from neusim.sim.engine import Engine, Handler
from neusim.sim.events import EventQueue, Priority
from neustream import LatencyTable, Outcome, Request
from neustream.driver import Callbacks
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.policies.fcfs import Fcfs
from neustream.policies.fcfs_loop import FcfsLoop
from neustream.route import llm_route, pipeline_route
from neustream.slo import NO_DEADLINES

TABLE = LatencyTable("m", "d", {"prefill": TokensLatency((1.0, 0.0, 0.0)), "decode": ContextLatency((0.5, 0.0))})
IMAGES = LatencyTable("i", "d", {"denoise": BatchLatency((1, 2), (1.0, 1.0)), "vae": BatchLatency((1, 2), (1.0, 1.0))})


def prompt(name: str, arrival: float, tokens: int) -> Request:
    return Request(name, arrival, NO_DEADLINES, llm_route(tokens), 16)


def test_an_output_ends_where_it_really_ends_and_the_policy_sees_its_maximum_only():
    ended: list[Request] = []
    seen: list[tuple[str, int]] = []

    class Watching(Fcfs):
        def plan(self, now, streams, limits):
            seen.extend((request.request_id, request.left[1]) for request in streams["decode"])
            return super().plan(now, streams, limits)

    driver = SimulatedDriver(TABLE, Device(), Watching, num_units=lambda r: {"a": 3, "b": 1}[r.request_id])
    driver.run(iter([prompt("a", 0.0, 10), prompt("b", 0.0, 10)]), Callbacks(ended.append))
    assert [(r.request_id, r.units, r.ended_at, r.outcome) for r in ended] == [
        ("b", 1, 1.0, Outcome.MET), ("a", 3, 2.0, Outcome.MET),
    ]  # fmt: skip
    assert seen == [("a", 9), ("a", 8)]


def test_what_finished_is_in_the_history_that_the_next_plan_reads():
    known = []

    class Watching(Fcfs):
        def plan(self, now, streams, limits):
            known.append({name: lengths.mean() for name, lengths in limits.lengths.items()})
            return super().plan(now, streams, limits)

    driver = SimulatedDriver(TABLE, Device(), Watching, num_units=lambda request: 2)
    driver.run(iter([prompt("a", 0.0, 10), prompt("b", 5.0, 10)]), Callbacks())
    assert (known[0], known[-1]) == ({}, {"": 2.0})


def test_a_withdrawn_request_ends_at_once_and_frees_its_memory_wherever_it_is():
    ended: list[Request] = []
    events: EventQueue[Handler] = EventQueue()
    engine = Engine(TABLE, Device(kv_blocks=16), Fcfs, Callbacks(ended.append), events=events)
    requests = [prompt("running", 0.0, 10), prompt("waiting", 0.6, 10), prompt("inbox", 0.7, 10)]
    for request in requests:
        events.push(request.arrival, Priority.ENTERS, lambda now, r=request: engine.submit(r, now))
    for request, when in zip(requests, (2.2, 1.1, 0.8), strict=True):
        events.push(when, Priority.ENTERS, lambda now, r=request: engine.abort(r, now))
    while len(events):
        now, handle = events.pop()
        handle(now)
    assert [(r.request_id, r.ended_at, r.outcome) for r in ended] == [
        ("inbox", 0.8, Outcome.ABORTED), ("waiting", 1.1, Outcome.ABORTED), ("running", 2.2, Outcome.ABORTED),
    ]  # fmt: skip
    assert engine.num_live == 0
    engine.check_integrity()


def test_a_request_that_is_withdrawn_between_two_processes_does_not_arrive():
    ended: list[Request] = []
    events: EventQueue[Handler] = EventQueue()
    engine = Engine(IMAGES, Device(layout="process", handover=0.5), FcfsLoop, Callbacks(ended.append), events=events)
    request = Request("a", 0.0, NO_DEADLINES, pipeline_route(IMAGES.modules, 1))
    events.push(0.0, Priority.ENTERS, lambda now: engine.submit(request, now))
    events.push(1.2, Priority.ENTERS, lambda now: engine.abort(request, now))
    while len(events):
        now, handle = events.pop()
        handle(now)
    assert [(r.ended_at, r.outcome) for r in ended] == [(1.2, Outcome.ABORTED)]
    engine.check_integrity()


def test_two_engines_on_one_queue_run_side_by_side():
    ended: list[Request] = []
    events: EventQueue[Handler] = EventQueue()
    engines = [Engine(TABLE, Device(), Fcfs, Callbacks(ended.append), events=events) for _ in range(2)]
    for engine, name in zip(engines, "ab", strict=True):
        events.push(0.0, Priority.ENTERS, lambda now, e=engine, n=name: e.submit(prompt(n, 0.0, 3), now))
    while len(events):
        now, handle = events.pop()
        handle(now)
    assert [(r.request_id, r.ended_at) for r in ended] == [("a", 2.0), ("b", 2.0)]
