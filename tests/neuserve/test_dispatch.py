"""Dispatchers by hand: jobs in, messages out, one report each, whatever is lost or withdrawn. No Ray, no threads."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replica_helpers import LLM, WORKFLOW, service

from neuserve.replicas import Deployment, Factory, PoolSpec, RequestService, WorkflowService
from neuserve.replicas.dispatch import Dispatcher, Order
from neuserve.replicas.messages import Begun, Call, Ended, Grown, Job, RunEvent, RunReport, Withdrawal
from neuserve.replicas.workflows import WorkflowDispatcher
from neustream.request import Outcome
from neustream.workflow.pool import Replica


class Bench:
    """A dispatcher with its replicas, and what its client was told."""

    def __init__(self, kind: str = "workflows", replicas: int = 1, credits: int = 2, budget: str = "carry") -> None:
        self.told: list[RunEvent | RunReport] = []
        self.pools = ["write", "execute"] if kind == "workflows" else ["serve"]
        chosen = service(budget) if kind == "workflows" else RequestService()
        self.dispatcher: Dispatcher = chosen.make(self.pools, lambda key, news: self.told.append(news))
        self.names = {pool: [f"{pool}-{i}" for i in range(replicas)] for pool in self.pools}
        for pool in self.pools:
            for name in self.names[pool]:
                assert self.dispatcher.gained(pool, Replica(name, credits), 0.0) == []

    @property
    def reports(self) -> list[RunReport]:
        return [news for news in self.told if isinstance(news, RunReport)]

    def events(self) -> list[tuple[str, str]]:
        return [(news.node, news.kind) for news in self.told if isinstance(news, RunEvent)]


def ended(order: Order, now: float = 0.0, **more: Any) -> Ended:
    """The end of a call, as a stand-in would make it."""
    assert isinstance(order.message, Call)
    fields = {"outcome": Outcome.MET, "reason": None, "units": 1, "result": order.message.payload["result"], **more}
    return Ended(order.message.call, **fields)


def test_a_workflow_is_walked_by_its_results_and_reported_with_every_call():
    bench = Bench()
    orders = bench.dispatcher.submit("c/a", Job("a", {"bad": 1}, is_watched=True), 1.0)
    for now in (2.0, 3.0, 4.0, 5.0, 6.0):
        (order,) = orders
        orders = bench.dispatcher.heard(ended(order), now)
    assert orders == []
    (report,) = bench.reports
    assert (report.run_id, report.outcome, report.seconds, report.result) == ("a", Outcome.MET, 5.0, "a:look")
    assert [(call.node, call.label, call.queued, call.ended) for call in report.calls] == [
        ("write", "ok", 0.0, 1.0), ("execute", "failed", 1.0, 2.0), ("repair", "ok", 2.0, 3.0),
        ("execute", "ok", 3.0, 4.0), ("look", "ok", 4.0, 5.0),
    ]  # fmt: skip
    assert bench.events()[:4] == [("write", "sent"), ("write", "ended"), ("execute", "sent"), ("execute", "ended")]


def test_a_call_carries_its_deadlines_as_seconds_from_its_sending():
    bench = Bench(credits=1)
    (first,) = bench.dispatcher.submit("c/a", Job("a", {}), 100.0)
    assert bench.dispatcher.submit("c/b", Job("b", {}), 100.0) == []
    (second,) = bench.dispatcher.heard(Begun(first.message.call), 103.0)
    assert isinstance(first.message, Call)
    assert isinstance(second.message, Call)
    assert first.message.slo == {"due_s": pytest.approx(40.0), "pace_s": 40.0, "growth_s": 0.0}
    assert second.message.slo == {"due_s": pytest.approx(37.0), "pace_s": 40.0, "growth_s": 0.0}


def test_growth_is_told_and_the_first_unit_frees_the_credit():
    bench = Bench(credits=1)
    (order,) = bench.dispatcher.submit("c/a", Job("a", {}, is_watched=True), 0.0)
    assert bench.dispatcher.submit("c/b", Job("b", {}), 0.0) == []
    (following,) = bench.dispatcher.heard(Grown(order.message.call, 2, "two words"), 0.5)
    assert following.message.call.startswith("c/b/")
    grown = [news for news in bench.told if isinstance(news, RunEvent) and news.kind == "grown"]
    assert [(news.units, news.output, news.at) for news in grown] == [(2, "two words", 0.5)]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"unprepared": "write"}, "write: its call cannot be prepared: KeyError: 'no prompt'"),
        ({"unprepared": "look"}, "look: its call cannot be prepared: KeyError: 'no prompt'"),
        ({"unlabelled": "write"}, "write: its result has no label: TypeError: no label"),
    ],
)
def test_a_nodes_mistake_fails_its_workflow_and_no_other(payload, reason):
    bench = Bench()
    todo = bench.dispatcher.submit("c/a", Job("a", payload), 0.0) + bench.dispatcher.submit("c/b", Job("b", {}), 0.0)
    while todo:
        todo += bench.dispatcher.heard(ended(todo.pop(0)), 1.0)
    assert {(report.run_id, report.outcome, report.reason) for report in bench.reports} == {
        ("a", Outcome.FAILED, reason), ("b", Outcome.MET, None),
    }  # fmt: skip
    assert bench.dispatcher.status()["num_live"] == 0


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.FAILED, Outcome.ABORTED])
def test_what_a_replica_gives_up_ends_its_workflow(outcome):
    bench = Bench()
    (order,) = bench.dispatcher.submit("c/a", Job("a", {}), 0.0)
    assert bench.dispatcher.heard(ended(order, outcome=outcome, reason="hopeless", units=0, result=None), 1.0) == []
    (report,) = bench.reports
    assert report.outcome == (Outcome.REJECTED if outcome is Outcome.REJECTED else Outcome.FAILED)
    assert report.reason == "write: hopeless"
    assert report.calls[0].outcome is outcome


@pytest.mark.parametrize("kind", ["workflows", "requests"])
def test_a_lost_replicas_calls_are_made_again_and_late_words_of_it_count_for_nothing(kind):
    bench = Bench(kind, replicas=2)
    pool = bench.pools[0]
    (order,) = bench.dispatcher.submit("c/a", Job("a", {"result": "a:write"}), 0.0)
    (again,) = bench.dispatcher.lost(pool, order.replica, 1.0)
    assert again.replica != order.replica
    assert again.message.call != order.message.call
    assert bench.dispatcher.heard(ended(order), 2.0) == []
    assert bench.dispatcher.status()["num_stale"] == 1
    assert bench.reports == []
    bench.dispatcher.heard(ended(again), 3.0)
    assert bench.dispatcher.status()["num_stale"] == 1


@pytest.mark.parametrize("kind", ["workflows", "requests"])
def test_a_job_whose_replicas_keep_dying_fails(kind):
    bench = Bench(kind)
    pool = bench.pools[0]
    bench.dispatcher.submit("c/a", Job("a", {"result": None}), 0.0)
    for attempt in range(3):
        bench.dispatcher.lost(pool, f"{pool}-0", 1.0)
        bench.dispatcher.gained(pool, Replica(f"{pool}-0"), 1.0)
        assert len(bench.reports) == (attempt == 2)
    (report,) = bench.reports
    assert report.outcome is Outcome.FAILED
    assert "lost its replica 3 times" in (report.reason or "")


@pytest.mark.parametrize("kind", ["workflows", "requests"])
def test_an_abort_withdraws_the_call_and_a_dead_pools_queue_fails(kind):
    bench = Bench(kind, credits=1)
    pool = bench.pools[0]
    (order,) = bench.dispatcher.submit("c/a", Job("a", {"result": None}), 0.0)
    bench.dispatcher.submit("c/b", Job("b", {"result": None}), 0.0)
    withdrawn, send = bench.dispatcher.abort("c/a", "enough", 1.0)
    assert withdrawn == Order(pool, order.replica, Withdrawal(order.message.call, "enough"))
    assert isinstance(send.message, Call)
    assert bench.dispatcher.abort("c/a", "enough", 1.0) == []
    assert bench.dispatcher.lost(pool, order.replica, 2.0) == []
    assert bench.dispatcher.abandon(pool, "nobody is left", 3.0) == []
    assert [(report.run_id, report.outcome, report.reason) for report in bench.reports] == [
        ("a", Outcome.ABORTED, "enough"), ("b", Outcome.FAILED, "nobody is left"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["workflows", "requests"])
def test_a_draining_replica_gets_no_further_calls(kind):
    bench = Bench(kind, replicas=2)
    pool = bench.pools[0]
    bench.dispatcher.drain(pool, f"{pool}-0")
    orders = [
        order for i in range(4) for order in bench.dispatcher.submit(f"c/{i}", Job(str(i), {"result": None}), float(i))
    ]
    assert {order.replica for order in orders} == {f"{pool}-1"}
    assert len(orders) == 2


def test_a_plain_request_keeps_its_slo_and_its_replicas_verdict():
    bench = Bench("requests")
    slo = {"ttft_ms": 500, "on_miss": "demote"}
    (order,) = bench.dispatcher.submit("c/a", Job("a", {"result": "r"}, slo=slo, waited=0.25), 10.0)
    assert (order.message.slo, order.message.waited) == (slo, 0.25)
    bench.dispatcher.heard(ended(order, outcome=Outcome.LATE, units=3, units_on_time=2), 11.0)
    (report,) = bench.reports
    assert (report.outcome, report.seconds, report.result) == (Outcome.LATE, 1.25, "r")
    assert (report.calls[0].units, report.calls[0].units_on_time) == (3, 2)


def test_a_plain_request_with_a_bad_slo_fails_at_once():
    bench = Bench("requests")
    assert bench.dispatcher.submit("c/a", Job("a", {}, slo={"ttft": 1}), 0.0) == []
    assert bench.reports[0].outcome is Outcome.FAILED
    assert (bench.reports[0].reason or "").startswith("SLO keys must be among")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["workflows", "requests"]), st.integers(1, 3), st.integers(1, 3))
def test_every_job_is_reported_once_whatever_happens_in_whatever_order(seed, kind, replicas, credits):
    """Replicas begin, grow, end and give up calls, die and come back, messages get lost with them, clients abort."""
    dice = random.Random(seed)
    bench = Bench(kind, replicas, credits)
    now, jobs, open_calls, down = 0.0, list(range(20)), [], []
    while len(bench.reports) < 20:
        now += dice.random()
        what = dice.random()
        orders: list[Order] = []
        if jobs and what < 0.3:
            i = jobs.pop()
            payload = {"bad": dice.randint(0, 3), "result": None}
            orders = bench.dispatcher.submit(f"c/{i}", Job(str(i), payload, is_watched=dice.random() < 0.5), now)
        elif what < 0.35:
            pool = dice.choice(bench.pools)
            name = dice.choice(bench.names[pool])
            if (pool, name) not in down:
                down.append((pool, name))
                orders = bench.dispatcher.lost(pool, name, now)
        elif down and what < 0.45:
            pool, name = down.pop(0)
            orders = bench.dispatcher.gained(pool, Replica(name, credits), now)
        elif what < 0.5:
            orders = bench.dispatcher.abort(f"c/{dice.randint(0, 30)}", "enough", now)
        elif open_calls:
            order = dice.choice(open_calls)
            if dice.random() < 0.5:
                word = dice.choice([Begun(order.message.call), Grown(order.message.call, dice.randint(1, 4), "x")])
                orders = bench.dispatcher.heard(word, now)
            else:
                open_calls.remove(order)
                bad_end = {"outcome": Outcome.REJECTED, "reason": "hopeless", "units": 0}
                orders = bench.dispatcher.heard(ended(order, **(bad_end if dice.random() < 0.05 else {})), now)
        orders += bench.dispatcher.look(now)
        open_calls += [order for order in orders if isinstance(order.message, Call)]
        if isinstance(bench.dispatcher, WorkflowDispatcher):
            bench.dispatcher.core.check_integrity()
    assert Counter(report.run_id for report in bench.reports) == Counter({str(i): 1 for i in range(20)})
    status = bench.dispatcher.status()
    assert status["num_live"] == 0
    assert all(pool["queue"] == 0 for pool in status["pools"].values())


STAND_IN = Factory("neuserve.replicas.stand_in:build", {"table": LLM})


@pytest.mark.parametrize(
    ("pools", "what", "message"),
    [
        ([PoolSpec("write", STAND_IN)], service(), "nobody serves node 'execute'"),
        ([PoolSpec("write", STAND_IN)] * 2, RequestService(), "two pools are named 'write'"),
        ([PoolSpec("a", STAND_IN), PoolSpec("b", STAND_IN)], RequestService(), "plain requests are served by one pool"),
        (
            [PoolSpec("write", STAND_IN), PoolSpec("execute", STAND_IN)],
            WorkflowService(WORKFLOW, service().stages, {"write": STAND_IN}),
            "no work is given for node execute, repair, look",
        ),
        (
            [PoolSpec("write", STAND_IN), PoolSpec("execute", STAND_IN)],
            service("hope"),
            "unknown budget rule 'hope'",
        ),
    ],
)
def test_a_deployment_that_cannot_work_is_refused_before_anything_starts(pools, what, message):
    with pytest.raises(ValueError, match=message) as caught:
        Deployment(pools, what)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "a pool needs a name"),
        ({"replicas": 0}, "pool 'p': replicas must be at least 1, got 0"),
        ({"threads": 0}, "pool 'p': threads must be at least 1, got 0"),
        ({"cpus": -1}, "pool 'p': cpus must be at least 0, got -1"),
        ({"gpus": 1.5}, "pool 'p': gpus above 1 must be whole, got 1.5"),
        ({"resources": {"device": float("nan")}}, "pool 'p': device must be at least 0, got nan"),
    ],
)
def test_a_pools_bad_numbers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PoolSpec(**{"name": "p", "driver": STAND_IN, **fields})


def test_several_gpus_of_a_replica_are_its_tensor_parallelism():
    pool = PoolSpec("p", STAND_IN, gpus=2, threads=3, env={"A": "b"})
    assert pool.bundle() == {"CPU": 1.0, "GPU": 2}
    assert pool.factory().options["tensor_parallel"] == 2
    assert "tensor_parallel" not in PoolSpec("p", STAND_IN, gpus=0.5).factory().options
    assert (pool.environment()["OMP_NUM_THREADS"], pool.environment()["A"]) == ("3", "b")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("neuserve.replicas.stand_in", "expected a path such as package.module:function"),
        ("no_such_package.engines:build", "there is no module 'no_such_package.engines'"),
        ("neuserve.replicas.nothing:build", "there is no module 'neuserve.replicas.nothing'"),
        ("a b:c", "expected a path such as package.module:function"),
    ],
)
def test_a_factory_that_leads_nowhere_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        Factory(path)


def test_a_factory_says_which_name_its_module_lacks():
    with pytest.raises(ValueError, match=r"module 'neuserve\.replicas\.stand_in' has no 'biuld'"):
        Factory("neuserve.replicas.stand_in:biuld").make()
