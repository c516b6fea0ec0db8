"""A small workflow over stand-ins for engines: what its nodes do, how its pools look, and waiting without limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from neuserve.replicas import Factory, Inputs, PoolSpec, Prepared, WorkflowService
from neustream import LatencyTable
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.workflow.graph import Edge, Node, Workflow
from neustream.workflow.stage import TOOL, llm_stage, tool_stage

PATIENCE = 120.0
"""Seconds after which a test that waits for something says that it never came."""

LLM = LatencyTable("m", "d", {"prefill": TokensLatency((0.004, 0.0, 0.0)), "decode": ContextLatency((0.004, 0.0))})
TOOLS = LatencyTable("t", "d", {TOOL: BatchLatency((1, 8), (0.005, 0.005))})

WORKFLOW = Workflow(
    "plot",
    (
        Node("write", "m", max_units=200_000),
        Node("execute", "t", kind="tool"),
        Node("repair", "m", max_units=200_000, pool="write"),
        Node("look", "m", max_units=200_000, pool="write"),
    ),
    (
        Edge("write", "execute"),
        Edge("execute", "repair", when="failed", at_most=2),
        Edge("execute", "look"),
        Edge("repair", "execute"),
    ),
)


class Writes:
    """A language model's node: what it makes names its workflow and itself."""

    def __init__(self, node: str, units: int = 4) -> None:
        self.node = node
        self.units = units

    def prepare(self, inputs: Inputs) -> Prepared:
        if inputs.payload.get("unprepared") == self.node:
            raise KeyError("no prompt")
        crash = inputs.payload.get("crash") == self.node
        made = f"{inputs.run_id}:{self.node}"
        units = inputs.payload.get("units", self.units)
        return Prepared({"size": 10, "units": units, "result": made, "crash": crash}, 10)

    def label(self, inputs: Inputs, result: Any) -> str:
        if inputs.payload.get("unlabelled") == self.node:
            raise TypeError("no label")
        assert result == f"{inputs.run_id}:{self.node}"
        return "ok"


class Executes:
    """A tool's node. Its first `bad` runs fail, as the workflow's payload says."""

    def prepare(self, inputs: Inputs) -> Prepared:
        num_before = sum(result.node == "execute" for result in inputs.results)
        fail = inputs.payload.get("fail") if num_before == 0 else None
        result = "bad" if num_before < inputs.payload.get("bad", 0) else "good"
        return Prepared({"result": result, "fail": fail})

    def label(self, inputs: Inputs, result: Any) -> str:
        return "failed" if result == "bad" else "ok"


def service(budget: str = "carry", scale: float = 10_000.0) -> WorkflowService:
    """The workflow above; the SLOs are so long that a slow machine changes nothing."""
    stages = {
        node.name: tool_stage(node, TOOLS, 5_000.0)
        if node.kind == "tool"
        else llm_stage(node, LLM, scale, typical_size=10, typical_units=4)
        for node in WORKFLOW.nodes
    }
    work = {
        node.name: Factory("replica_helpers:Executes")
        if node.kind == "tool"
        else Factory("replica_helpers:Writes", {"node": node.name})
        for node in WORKFLOW.nodes
    }
    return WorkflowService(WORKFLOW, stages, work, budget)


def pools(write: int = 1, execute: int = 1, **options: Any) -> list[PoolSpec]:
    """Stand-ins for the models' and the tools' replicas."""
    return [
        PoolSpec("write", Factory("neuserve.replicas.stand_in:build", {"table": LLM}), write, **options),
        PoolSpec("execute", Factory("neuserve.replicas.stand_in:build", {"table": TOOLS}), execute, **options),
    ]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of the condition. Fails after `PATIENCE`."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"it never came to be that {what}")
