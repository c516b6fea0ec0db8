"""The coordinator on a virtual clock: who is sent where and when, budgets, lost replicas; everything ends once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workflow_helpers import LOOP, FakeWorld, coordinator

from neustream import Outcome
from neustream.workflow.budget import BUDGETS, make_budget
from neustream.workflow.coordinator import Send, Withdraw
from neustream.workflow.pool import Replica
from neustream.workflow.run import Run


def sends(actions):
    return [(action.run.run_id, action.node.name, action.replica) for action in actions if isinstance(action, Send)]


def test_a_workflow_walks_from_node_to_node_as_its_results_say():
    ended: list[Run] = []
    target = coordinator(on_end=ended.append)
    actions = target.submit(Run("a", LOOP, 0.0), 0.0)
    way = []
    for now, label in ((1.0, "ok"), (1.5, "failed"), (2.0, "ok"), (2.5, "ok"), (3.0, "ok")):
        (action,) = actions
        way.append(action.node.name)
        target.delivered(action.call, 1, now - 0.1)
        actions = target.ended(action.call, label, 5 if action.node.kind == "llm" else 1, now)
        target.check_integrity()
    assert way == ["write", "execute", "repair", "execute", "look"]
    (run,) = ended
    assert (run.outcome, run.ended_at, target.num_live) == (Outcome.MET, 3.0, 0)
    assert [(visit.node.name, visit.queued_at, visit.ended_at) for visit in run.visits] == [
        ("write", 0.0, 1.0), ("execute", 1.0, 1.5), ("repair", 1.5, 2.0), ("execute", 2.0, 2.5), ("look", 2.5, 3.0),
    ]  # fmt: skip


def test_carry_binds_each_stage_to_the_sum_of_the_stages_slos_so_far():
    """Scale 2: a prefill of 10 is due by 0.4 s, each token 0.2 s after the last; a tool by 2.5 s."""
    target = coordinator()
    (write,) = target.submit(Run("a", LOOP, 0.0), 0.0)
    assert [round(write.deadlines.at(k), 9) for k in (1, 2, 5)] == [0.4, 0.6, 1.2]
    (execute,) = target.ended(write.call, "ok", 5, 0.7)
    assert execute.deadlines.at(1) == pytest.approx(1.2 + 2.5)
    (look,) = target.ended(execute.call, "ok", 1, 3.0)
    assert look.deadlines.at(1) == pytest.approx(3.7 + 0.4)


def test_carry_ends_a_workflow_with_the_first_stage_that_is_late_by_that_sum():
    ended: list[Run] = []
    target = coordinator(on_end=ended.append)
    (write,) = target.submit(Run("a", LOOP, 0.0), 0.0)
    assert target.ended(write.call, "ok", 5, 1.3) == []
    assert (ended[0].outcome, ended[0].reason) == (
        Outcome.REJECTED, "its stage ended 0.100 s after the stages' SLOs so far",
    )  # fmt: skip


@pytest.mark.parametrize(("deadline", "shift"), [(10.0, 0.4 * (10.0 - 3.8)), (3.8, 0.0), (3.0, -0.8)])
def test_lookahead_lends_a_share_of_the_spare_time_and_takes_back_all_that_lacks(deadline, shift):
    """A call's own SLO is 0.4 s + 9 x 0.2 s; the stages after it take 0.5 s and 1.1 s alone."""
    target = coordinator(budget="lookahead")
    (write,) = target.submit(Run("a", LOOP, 0.0, deadline=deadline), 0.0)
    assert write.deadlines.at(1) == pytest.approx(0.4 + shift if shift >= 0 else 0.2)
    assert write.deadlines.at(10) == pytest.approx(2.2 + shift if shift >= 0 else 2.0)


def test_lookahead_goes_on_after_a_stage_that_carry_would_end_with():
    late = {"carry": Outcome.REJECTED, "lookahead": None}
    for budget, outcome in late.items():
        target = coordinator(budget=budget)
        run = Run("a", LOOP, 0.0)
        (write,) = target.submit(run, 0.0)
        target.ended(write.call, "ok", 5, 1.3)
        assert run.outcome is outcome


@pytest.mark.parametrize("budget", ["lookahead", "proportional"])
def test_what_cannot_make_it_is_given_up_at_the_front_door(budget):
    ended: list[Run] = []
    target = coordinator(budget=budget, on_end=ended.append)
    assert target.submit(Run("a", LOOP, 0.0, deadline=2.0), 0.0) == []
    assert ended[0].reason == "due in 2.000 s, it needs 2.700 s more"
    assert len(target.submit(Run("b", LOOP, 0.0, deadline=3.0), 0.0)) == 1


def test_a_waiting_workflow_is_given_up_once_it_cannot_make_it_and_its_place_goes_to_the_next():
    ended: list[Run] = []
    target = coordinator(budget="lookahead", on_end=ended.append)
    assert sends(target.submit(Run("a", LOOP, 0.0, deadline=3.0), 0.0)) == [("a", "write", "write-0")]
    assert target.submit(Run("b", LOOP, 0.0, deadline=9.0), 0.0) == []
    assert target.look(0.2) == []
    withdrawn, send = target.look(1.0)
    assert isinstance(withdrawn, Withdraw)
    assert (withdrawn.replica, sends([send])) == ("write-0", [("b", "write", "write-0")])
    assert [(run.run_id, run.outcome) for run in ended] == [("a", Outcome.REJECTED)]
    assert target.delivered(withdrawn.call, 1, 1.1) == []
    assert target.num_stale == 1


def test_calls_bind_late_the_most_urgent_to_the_replica_that_has_least_to_do():
    target = coordinator(replicas=2)
    first = target.submit(Run("a", LOOP, 0.0), 0.0) + target.submit(Run("b", LOOP, 0.0), 0.0)
    assert sends(first) == [("a", "write", "write-0"), ("b", "write", "write-1")]
    assert target.submit(Run("c", LOOP, 5.0), 0.0) == []
    assert target.submit(Run("d", LOOP, 1.0), 0.0) == []
    assert sends(target.begun(first[1].call, 0.5)) == [("d", "write", "write-1")]
    assert sends(target.ended(first[0].call, "ok", 2, 0.6)) == [
        ("c", "write", "write-0"),
        ("a", "execute", "execute-0"),
    ]
    target.check_integrity()


def test_a_lost_replicas_calls_are_made_again_elsewhere_with_their_deadlines():
    target = coordinator(replicas=2)
    (a,) = target.submit(Run("a", LOOP, 0.0), 0.0)
    (again,) = target.lost("write", "write-0", 0.1)
    assert (again.replica, again.deadlines, again.run.visit.attempt) == ("write-1", a.deadlines, 1)
    assert target.ended(a.call, "ok", 3, 0.2) == []
    assert target.num_stale == 1
    assert target.lost("write", "write-1", 0.3) == []
    (third,) = target.gained("write", Replica("write-2", 1), 0.4)
    assert third.run.run_id == "a"
    target.check_integrity()


def test_a_call_whose_replicas_keep_dying_fails():
    ended: list[Run] = []
    target = coordinator(on_end=ended.append)
    target.submit(Run("a", LOOP, 0.0), 0.0)
    for attempt in range(3):
        name = next(iter(target.pools["write"].replicas))
        target.lost("write", name, 0.1)
        target.gained("write", Replica(f"new-{attempt}"), 0.1)
    assert [(run.outcome, run.reason) for run in ended] == [(Outcome.FAILED, "write: lost its replica 3 times")]
    target.check_integrity()


def test_an_abort_withdraws_the_call_and_a_second_one_does_nothing():
    ended: list[Run] = []
    target = coordinator(on_end=ended.append)
    (send,) = target.submit(Run("a", LOOP, 0.0), 0.0)
    (withdrawn,) = target.abort("a", 0.5)
    assert (withdrawn.call, withdrawn.replica, ended[0].outcome) == (send.call, "write-0", Outcome.ABORTED)
    assert target.abort("a", 0.6) == []


def test_a_draining_replica_gets_no_further_calls():
    target = coordinator(replicas=2)
    target.drain("write", "write-0")
    assert sends(target.submit(Run("a", LOOP, 0.0), 0.0)) == [("a", "write", "write-1")]
    assert target.submit(Run("b", LOOP, 0.0), 0.0) == []


def test_the_queues_ahead_count_at_the_front_door():
    """`write` takes 4 s a call and calls wait there: a deadline is lost that is kept where nobody waits."""
    for early, lost in ((5, ["late"]), (1, [])):
        ended: list[Run] = []
        target = coordinator(budget="lookahead", credit=5, on_end=ended.append)
        target.pools["write"].seconds_per_call = 4.0
        for i in range(early):
            for send in target.submit(Run(f"early-{i}", LOOP, 0.0, deadline=100.0), 0.0)[:1]:
                if i == 0:
                    target.begun(send.call, 0.0)
        target.submit(Run("late", LOOP, 0.0, deadline=10.0), 0.0)
        assert [run.run_id for run in ended] == lost


def test_an_id_in_use_and_an_unknown_budget_rule_are_refused():
    target = coordinator()
    target.submit(Run("a", LOOP, 0.0), 0.0)
    with pytest.raises(ValueError, match="workflow id 'a' is in use"):
        target.submit(Run("a", LOOP, 0.0), 0.0)
    with pytest.raises(ValueError, match="unknown budget rule 'half'; there are carry, proportional, lookahead"):
        make_budget("half")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from(sorted(BUDGETS)), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4)
)
def test_every_workflow_ends_exactly_once_whatever_happens(seed, budget, replicas, credit, losses):
    ended: list[Run] = []
    target = coordinator(budget=budget, replicas=replicas, credit=credit, on_end=ended.append)
    world = FakeWorld(target, seed, losses=losses)
    for i in range(25):
        arrival = world.dice.uniform(0.0, 30.0)
        deadline = arrival + world.dice.uniform(1.0, 60.0) if world.dice.random() < 0.5 else None
        run = Run(str(i), LOOP, arrival, deadline)
        world.at(arrival, lambda r=run: world.carry_out(target.submit(r, world.now)))
        if world.dice.random() < 0.1:
            world.at(arrival + 1.0, lambda r=run: world.carry_out(target.abort(r.run_id, world.now)))
    for second in range(60):
        world.at(float(second), lambda: world.carry_out(target.look(world.now)))
    world.run()
    assert Counter(run.run_id for run in ended) == Counter({str(i): 1 for i in range(25)})
    assert target.num_live == 0
    for run in ended:
        assert run.outcome is not None
        assert run.reason or run.outcome in (Outcome.MET, Outcome.LATE)
        if run.outcome is Outcome.MET:
            assert run.ended_at is not None
            assert run.ended_at <= run.due
