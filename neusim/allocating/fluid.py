"""Fluid capacity of pools: what a workload asks of each node on average, and what a replica serves of it per second.

No burst, no queue and no spread of lengths: an upper estimate of the rate, and the figures of the exact model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neusim.sim.workflow_load import WorkflowWorkload
from neusim.sim.workflow_setup import Scenario
from neustream.capacity import llm_capacity, pipeline_capacity
from neustream.route import Route
from neustream.workflow.graph import Workflow
from neustream.workflow.stage import StageCost


@dataclass(frozen=True, slots=True)
class Demand:
    """What a workflow asks of one node on average."""

    visits: float
    """Calls per workflow."""
    size: int
    """Units of input of a call."""
    units: int
    """Output units of a call."""
    seconds: float
    """What a tool's run takes."""


def measure_demand(scenario: Scenario) -> dict[str, Demand]:
    """Walk every workflow of the scenario through its graph, without time; what each node is asked for."""
    return walk(scenario.graph, scenario.workload(1.0, 1.0))


def walk(workflow: Workflow, workload: WorkflowWorkload) -> dict[str, Demand]:
    """What the workflows of `workload` ask of each node, in a world without waiting."""
    totals: dict[str, list[float]] = {node.name: [0.0, 0.0, 0.0, 0.0] for node in workflow.nodes}
    num = 0
    for run in workload.runs(workflow):
        num += 1
        name: str | None = workflow.start.name
        while name is not None:
            node = workflow[name]
            visit = run.enter(node, workload.size(run, node), run.arrival)
            truth = workload.truth(run, node)
            visit.units = truth.units
            for i, value in enumerate((1.0, visit.size, visit.units, truth.seconds)):
                totals[name][i] += value
            edge = run.leave(truth.label, 0.0, run.arrival)
            name = None if edge is None else edge.target
    return {
        name: Demand(calls / num, round(size / calls), max(round(units / calls), 1), seconds / calls)
        if calls
        else Demand(0.0, 1, 1, 0.0)
        for name, (calls, size, units, seconds) in totals.items()
    }


def replica_rate(stage: StageCost, demand: Demand, scale: float) -> float:
    """Calls of this node that one replica serves per second with each at its pace."""
    if stage.node.kind == "llm":
        return llm_capacity(stage.table, prompt=demand.size, max_tokens=demand.units, dslo=scale)
    return pipeline_capacity(stage.table, _visits(stage.route()), scale)


def _visits(route: Route) -> dict[str, float]:
    counted: dict[str, float] = {}
    for stage in route:
        counted[stage.module] = counted.get(stage.module, 0.0) + stage.visits
    return counted


def seconds_per_workflow(scenario: Scenario, demand: Mapping[str, Demand], scale: float) -> dict[str, float]:
    """Replica seconds that one workflow takes of each pool of devices."""
    stages = scenario.stages(scale)
    return {
        pool: sum(
            demand[node.name].visits / replica_rate(stages[node.name], demand[node.name], scale)
            for node in nodes
            if demand[node.name].visits
        )
        for pool, nodes in scenario.pool_nodes.items()
    }


def fluid_capacity(
    scenario: Scenario, demand: Mapping[str, Demand], scale: float, replicas: Mapping[str, int]
) -> float:
    """Workflows per second that these replicas serve with every call on pace, at most as fast as the tools' seats."""
    seconds = seconds_per_workflow(scenario, demand, scale)
    limits = [replicas[pool] / spent for pool, spent in seconds.items() if spent > 0]
    for node in scenario.graph.nodes:
        if node.kind == "tool" and demand[node.name].visits:
            shared = [n for n in scenario.graph.nodes if n.pool_name == node.pool_name]
            limits.append(scenario.seats / sum(demand[n.name].visits * demand[n.name].seconds for n in shared))
    return min(limits)
