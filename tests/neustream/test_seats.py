"""Seats: a step takes in no more new requests than the device has room for, and somebody always gets on."""

from __future__ import annotations

from neustream import Limits, Request, StepLoop, StepPlan, StepResult, Streams
from neustream.driver import Callbacks
from neustream.latency import BatchLatency
from neustream.plan import Rejection
from neustream.policies.seats import WithSeats
from neustream.records import StepRecord
from neustream.request import Outcome
from neustream.route import Stage
from neustream.slo import NO_DEADLINES
from neustream.tables import LatencyTable
from neustream.testing import VirtualClock

TABLE = LatencyTable("m", "test", {"denoise": BatchLatency((1, 64), (1.0, 1.0))})


def request(name: str, visits: int = 3) -> Request:
    return Request(name, 0.0, NO_DEADLINES, (Stage("denoise", visits),))


class Newest:
    """Chooses the requests that came last, which is the worst that a policy can do where seats are few."""

    def __init__(self, size: int) -> None:
        self.size = size

    def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
        batch = tuple(streams["denoise"])[-self.size :]
        return StepPlan("denoise", batch) if batch else StepPlan()


class Seats:
    """An executor with so many seats, which says so once it has refused one."""

    def __init__(self, seats: int) -> None:
        self.seats = seats
        self.taken: set[str] = set()
        self.says: Limits = Limits()

    def limits(self) -> Limits:
        return self.says

    def run(self, plan: StepPlan) -> StepResult:
        deferred = set()
        for member in plan.batch:
            if member.request_id in self.taken or len(self.taken) < self.seats:
                self.taken.add(member.request_id)
            else:
                deferred.add(member.request_id)
                self.says = Limits(max_resident=self.seats)
        return StepResult(deferred=frozenset(deferred))


def serve(policy: WithSeats, num_requests: int, seats: int) -> tuple[list[StepRecord], list[Request]]:
    executor = Seats(seats)
    records: list[StepRecord] = []
    ended: list[Request] = []

    def end(done: Request) -> None:
        executor.taken.discard(done.request_id)
        ended.append(done)

    loop = StepLoop(policy, Streams(["denoise"]), executor, VirtualClock(), Callbacks(end, records.append))
    for i in range(num_requests):
        loop.streams.add(request(f"{i}"))
    for _ in range(100):
        if not len(loop.streams):
            break
        loop.step()
        loop.streams.check_integrity()
    return records, ended


def test_all_are_served_two_at_a_time_where_there_are_two_seats() -> None:
    records, ended = serve(WithSeats(Newest(4)), num_requests=5, seats=2)
    assert sorted(r.request_id for r in ended) == ["0", "1", "2", "3", "4"]
    assert {r.outcome for r in ended} == {Outcome.MET}
    assert [record.request_ids for record in records] == [("1", "2")] * 3 + [("0", "3")] * 3 + [("4",)] * 3


def test_a_step_of_requests_without_seats_becomes_one_of_those_that_have_them() -> None:
    seated, new = request("seated"), request("new")
    seated.move()
    streams = Streams(["denoise"])
    for each in (seated, new):
        streams.add(each)
    policy = WithSeats(Newest(1))
    assert policy.plan(0.0, streams, Limits()).batch == (new,), "where seats are no matter nothing changes"
    assert policy.plan(0.0, streams, Limits(max_resident=2)).batch == (new,)
    assert policy.plan(0.0, streams, Limits(max_resident=1)).batch == (seated,)


def test_a_seat_of_a_request_that_the_same_plan_gives_up_is_free() -> None:
    seated, new = request("seated"), request("new")
    seated.move()
    streams = Streams(["denoise"])
    for each in (seated, new):
        streams.add(each)

    class GivesUp:
        def plan(self, now: float, streams: Streams, limits: Limits) -> StepPlan:
            return StepPlan("denoise", (new,), (Rejection(seated, "hopeless"),))

    plan = WithSeats(GivesUp()).plan(0.0, streams, Limits(max_resident=1))
    assert (plan.batch, [r.request for r in plan.rejected]) == ((new,), [seated])
    seated.on_miss = "demote"
    assert WithSeats(Newest(1)).plan(0.0, streams, Limits(max_resident=1)).batch == (seated,)


def test_a_step_that_nobody_got_a_seat_in_is_no_step_and_is_tried_again_at_once() -> None:
    clock, records = VirtualClock(3.0), list[StepRecord]()
    loop = StepLoop(Newest(1), Streams(["denoise"]), Seats(0), clock, Callbacks(on_step=records.append))
    waiting = request("0")
    loop.streams.add(waiting)
    plan = loop.step()
    assert (plan.module, plan.wake, records) == (None, 3.0, [])
    assert (waiting.left, waiting.passes, waiting.is_resident) == ([3], 0, False)
