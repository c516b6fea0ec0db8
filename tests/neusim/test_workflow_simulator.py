"""Workflows in virtual time: times in closed form on hand-made tables, every workflow ends once, figures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neusim.sim.device import Device
from neusim.sim.workflow_figures import WARM_UP, WorkflowResult
from neusim.sim.workflow_load import PoolPlan, Truth
from neusim.sim.workflows import HANDOVER, WorkflowSimulator, simulate_workflows
from neustream import LatencyTable, Outcome
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.policies import make_policy
from neustream.workflow import BUDGETS, Edge, Node, Run, StageCost, Workflow, image_stage, llm_stage, tool_stage
from neustream.workflow.stage import TOOL

LLM = LatencyTable("m", "d", {"prefill": TokensLatency((0.1, 0.01, 0.0)), "decode": ContextLatency((0.1, 0.0))})
PAINTER = LatencyTable("p", "d", {"denoise": BatchLatency((1, 2), (0.2, 0.3)), "vae": BatchLatency((1,), (0.1,))})
TOOLS = LatencyTable("t", "d", {TOOL: BatchLatency((1,), (0.5,))})
WRITE, LOOK = Node("write", "m", max_units=20), Node("look", "m", max_units=20)
EXECUTE = Node("execute", "t", kind="tool")
CHAIN = Workflow("chain", (WRITE, EXECUTE, LOOK), (Edge("write", "execute"), Edge("execute", "look")))
REPAIR = Node("repair", "m", max_units=20, pool="write")
LOOP = Workflow(
    "loop",
    (WRITE, EXECUTE, REPAIR, LOOK),
    (
        Edge("write", "execute"),
        Edge("execute", "repair", when="failed", at_most=2),
        Edge("execute", "look"),
        Edge("repair", "execute"),
    ),
)


class Load:
    """Workflows at given times; what a call does is drawn from its run, node and visit, or is `units` and half a
    second."""

    def __init__(
        self, arrivals: list[float], *, units: int = 3, seed: int | None = None, deadline: float | None = None
    ):
        self.arrivals, self.units, self.seed, self.deadline = arrivals, units, seed, deadline
        self.window = max(arrivals) + 1.0

    def runs(self, workflow: Workflow) -> Iterator[Run]:
        for i, arrival in enumerate(self.arrivals):
            yield Run(f"{i}", workflow, arrival, None if self.deadline is None else arrival + self.deadline)

    def size(self, run: Run, node: Node) -> int:
        return 10

    def truth(self, run: Run, node: Node) -> Truth:
        if self.seed is None:
            return Truth(units=self.units, seconds=0.5)
        dice = random.Random(f"{self.seed}/{run.run_id}/{node.name}/{len(run.visits)}")
        label = "failed" if dice.random() < 0.3 else "ok"
        return Truth(dice.randint(1, node.max_units), label, dice.uniform(0.1, 2.0))


def costs(workflow: Workflow, scale: float = 2.0) -> dict[str, StageCost]:
    return {
        node.name: tool_stage(node, TOOLS, 2.5)
        if node.kind == "tool"
        else llm_stage(node, LLM, scale, typical_size=10, typical_units=10)
        for node in workflow.nodes
    }


def serve(
    load: Load,
    workflow: Workflow = CHAIN,
    budget: str = "carry",
    policy: str = "fcfs",
    *,
    replicas: int = 1,
    seats: int = 4,
    device: Device = Device(),  # noqa: B008
    scale: float = 2.0,
    **options: object,
) -> WorkflowResult:
    pools = {
        node.pool_name: PoolPlan(replicas, None if node.kind == "tool" else device, seats) for node in workflow.nodes
    }
    make = partial(make_policy, policy)
    return simulate_workflows(
        workflow, costs(workflow, scale), pools, lambda cost: make(cost.table), budget, load, **options
    )


def test_a_lone_workflow_takes_its_standalone_seconds_and_the_hand_overs():
    """A prefill of 10 takes 0.2 s, two further tokens 0.1 s each; the tool takes 0.5 s."""
    result = serve(Load([0.0]))
    (run,) = result.runs
    assert run.outcome is Outcome.MET
    assert run.ended_at == pytest.approx(0.4 + 0.5 + 0.4 + 3 * HANDOVER)
    assert [visit.units for visit in run.visits] == [3, 1, 3]
    assert [round(visit.granted_until, 9) for visit in run.visits] == [0.8, 3.3, 4.1]


def test_a_tool_runs_as_often_at_once_as_it_has_seats():
    ends = {}
    for seats in (1, 2):
        runs = serve(Load([0.0, 0.0]), seats=seats).runs
        ends[seats] = sorted(run.visits[1].ended_at - run.visits[0].ended_at for run in runs)
    assert ends[2] == pytest.approx([0.5 + HANDOVER] * 2)
    assert ends[1] == pytest.approx([0.5 + HANDOVER, 2 * (0.5 + HANDOVER)])


def test_late_binding_leaves_a_call_for_whichever_replica_is_free_and_round_robin_does_not():
    """The first and third of four calls are long: in turn they get the same replica, and the third waits for it."""

    class LongAndShort(Load):
        def truth(self, run: Run, node: Node) -> Truth:
            return Truth(units=20 if run.run_id in ("0", "2") else 1, seconds=0.1)

    device = Device(max_num_seqs=1)
    waits = {}
    for binding in ("round_robin", "late"):
        runs = serve(
            LongAndShort([0.0, 0.3, 0.6, 0.9]), replicas=2, device=device, scale=9.0, binding=binding, credits=1
        ).runs
        third = next(run for run in runs if run.run_id == "2")
        waits[binding] = third.visits[0].first_unit_at - third.arrival
    assert waits["round_robin"] > 1.5
    assert waits["late"] == pytest.approx(0.2 + HANDOVER)


def test_carry_ends_with_the_first_stage_that_is_late_and_its_work_is_lost():
    """Three prefills one after the other: the third ends at 0.603 s, where 0.22 s are granted; its tokens are late."""
    result = serve(Load([0.0, 0.0, 0.0]), scale=1.1)
    assert [run.outcome for run in result.runs].count(Outcome.MET) == 0
    assert result.summary["rejected"] == 3
    assert result.summary["work_lost"] == 1.0
    assert {len(run.visits) for run in result.runs} == {1}
    assert result.summary["pools"]["write"]["lost_there"] == 3


def test_a_workflow_that_is_given_up_in_a_step_leaves_no_memory_and_no_seat_behind():
    """One constant deadline that nobody can hold: look-ahead withdraws calls from under running steps."""
    load = Load([0.1 * i for i in range(40)], seed=3, deadline=6.0)
    result = serve(load, LOOP, "lookahead", "neustream", device=Device(kv_blocks=40), scale=3.0)
    outcomes = [run.outcome for run in result.runs]
    assert 0 < outcomes.count(Outcome.MET) < 40
    assert any(run.visits[0].first_unit_at is not None and run.outcome is Outcome.REJECTED for run in result.runs)
    assert all(run.ended_at <= run.deadline + 1.0 for run in result.runs)


def test_rates_count_units_in_time_within_the_window_after_the_warm_up():
    """One call every 2 s for 60 s; the window is 61 s long and begins 30 s after the first call."""
    result = serve(Load([2.0 * i for i in range(31)], units=5), scale=3.0)
    rates = result.summary["nodes"]["write"]
    assert result.good == 31
    firsts = sum(2.0 * i + HANDOVER + 0.2 >= WARM_UP for i in range(31))
    assert rates["p"] == pytest.approx(firsts / 61.0)
    assert rates["d"] == pytest.approx(firsts / 61.0)
    assert rates["token_goodput"] == pytest.approx((5 * firsts) / 61.0)
    assert result.summary["work_lost"] == 0.0
    busy = result.summary["pools"]["write"]["busy"]
    assert busy == pytest.approx(31 * 0.6 / result.summary["seconds"])


def test_an_image_model_and_a_language_model_serve_one_deadline():
    paint = Node("paint", "p", kind="image")
    workflow = Workflow("picture", (WRITE, paint), (Edge("write", "paint"),))
    stages = {"write": costs(CHAIN)["write"], "paint": image_stage(paint, PAINTER, 2.0, 5)}
    pools = {"write": PoolPlan(1, Device()), "paint": PoolPlan(1, Device())}
    result = simulate_workflows(
        workflow, stages, pools, lambda cost: make_policy("fcfs", cost.table), "lookahead", Load([0.0, 9.0])
    )
    assert [run.outcome for run in result.runs] == [Outcome.MET] * 2
    assert result.runs[0].ended_at == pytest.approx(0.4 + 5 * 0.2 + 0.1 + 2 * HANDOVER)


def test_a_pool_that_serves_nothing_and_a_node_without_a_pool_are_refused():
    pools = {name: PoolPlan(1, Device()) for name in ("write", "look", "paint")}
    with pytest.raises(ValueError, match="pool 'paint' serves no node of workflow 'chain'"):
        simulate_workflows(
            CHAIN, costs(CHAIN), pools, lambda cost: make_policy("fcfs", cost.table), "carry", Load([0.0])
        )
    del pools["paint"]
    with pytest.raises(ValueError, match="execute"):
        simulate_workflows(
            CHAIN, costs(CHAIN), pools, lambda cost: make_policy("fcfs", cost.table), "carry", Load([0.0])
        )
    with pytest.raises(ValueError, match="at least one replica, got 0"):
        PoolPlan(0)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    budget=st.sampled_from(sorted(BUDGETS)),
    policy=st.sampled_from(["fcfs", "neustream", "slack"]),
    binding=st.sampled_from(["late", "round_robin"]),
    replicas=st.integers(1, 3),
    credits=st.integers(1, 4),
    deadline=st.sampled_from([None, 4.0, 30.0]),
)
def test_every_workflow_ends_exactly_once_and_equal_runs_are_equal(
    seed, budget, policy, binding, replicas, credits, deadline
):
    """`run` checks the coordinator, the engines' streams and their memory when it is over."""
    dice = random.Random(seed)
    arrivals = sorted(dice.uniform(0.0, 8.0) for _ in range(12))

    def once() -> WorkflowResult:
        load = Load(arrivals, seed=seed, deadline=deadline)
        device = Device(kv_blocks=dice_blocks, max_num_seqs=4)
        return serve(
            load, LOOP, budget, policy, replicas=replicas, seats=2, device=device, binding=binding, credits=credits
        )

    dice_blocks = dice.choice([4, 8, 40])
    first, second = once(), once()
    assert sorted(run.run_id for run in first.runs) == sorted(f"{i}" for i in range(12))
    assert first.summary == second.summary
    assert sum(first.summary[str(outcome)] for outcome in Outcome if outcome is not Outcome.MET) == 12 - first.good
    assert all(run.ended_at >= run.arrival for run in first.runs)


def test_a_call_that_is_withdrawn_while_it_is_handed_over_never_reaches_its_replica():
    simulator = WorkflowSimulator(
        CHAIN,
        costs(CHAIN),
        {node.name: PoolPlan(1, None if node.kind == "tool" else Device(), 4) for node in CHAIN.nodes},
        lambda cost: make_policy("fcfs", cost.table),
        BUDGETS["carry"](),
        Load([0.0]),
        handover=5.0,
    )
    abort = simulator.coordinator.abort
    simulator._events.push(1.0, 2, lambda now: simulator._carry_out(abort("0", now), now))
    (run,) = simulator.run().runs
    assert (run.outcome, run.ended_at) == (Outcome.ABORTED, 1.0)
    assert simulator.busy["write"] == 0.0
