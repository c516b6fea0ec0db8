"""Workflows above requests: graphs of calls under one deadline, budget rules, pools of replicas, the coordinator.

Pure: the same objects serve on Ray, in the simulator and in tests. docs/workflows.md explains them.
"""

from neustream.workflow.budget import BUDGETS, Budget, make_budget
from neustream.workflow.coordinator import Coordinator, Send, Withdraw
from neustream.workflow.graph import Edge, Node, Workflow, pool_by_module
from neustream.workflow.pool import Pool, Replica
from neustream.workflow.run import Run, Visit
from neustream.workflow.stage import StageCost, image_stage, llm_stage, tool_stage

__all__ = [
    "BUDGETS",
    "Budget",
    "Coordinator",
    "Edge",
    "Node",
    "Pool",
    "Replica",
    "Run",
    "Send",
    "StageCost",
    "Visit",
    "Withdraw",
    "Workflow",
    "image_stage",
    "llm_stage",
    "make_budget",
    "pool_by_module",
    "tool_stage",
]
