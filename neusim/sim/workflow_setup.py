"""What a simulation of workflows starts from: graph, tables, workload; and the replicas that serve it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from neusim.sim.agent_trace import PlotTask, PlotTrace, read_tables, read_trace
from neusim.sim.device import default_device
from neusim.sim.run import named_policy
from neusim.sim.sampled_workflows import SampledWorkflows
from neusim.sim.sweep import default_steps
from neusim.sim.workflow_figures import WorkflowResult
from neusim.sim.workflow_load import PoolPlan, WorkflowWorkload, tool_table
from neusim.sim.workflows import simulate_workflows
from neustream.catalog.workflows import (
    CODE_MODEL,
    EXECUTE_SECONDS,
    PUBLISHED_REPLICAS,
    RUNNER_SEATS,
    TYPICAL,
    VISION_MODEL,
    find_workflow,
)
from neustream.policies import StepPolicy
from neustream.tables import LatencyTable, TableError, find_table
from neustream.workflow.graph import Node, Workflow, pool_by_module
from neustream.workflow.pool import Binding
from neustream.workflow.stage import StageCost, image_stage, llm_stage, tool_stage

ARTIFACT_TABLES, ARTIFACT_TRACE = "agents_tables.json", "agents_trace.json"
"""The files of a folder that holds the artifact's tables and trace of the plotting workflow."""
ARTIFACT_NAMES = {CODE_MODEL: "codellama", VISION_MODEL: "llava"}
MAX_BATCHED_TOKENS = 4096
"""Prompt tokens in one step of a language model's replica."""
NUM_WORKFLOWS = 300
USUAL_STEPS = 20
"""Denoising steps of an image node whose model has no published range."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workflow, what its calls cost, and what they are like."""

    workflow: Workflow
    tables: Mapping[str, LatencyTable]
    """By module."""
    tasks: tuple[PlotTask, ...] = ()
    """Recorded tasks; without any, workflows are sampled."""
    num: int = NUM_WORKFLOWS
    seats: int = RUNNER_SEATS
    is_pooled: bool = False
    """Whether all nodes of a model share one pool."""

    @property
    def graph(self) -> Workflow:
        """The workflow with its pools as they are served."""
        return pool_by_module(self.workflow) if self.is_pooled else self.workflow

    @property
    def pool_nodes(self) -> dict[str, list[Node]]:
        """The nodes of each pool that needs devices, pools in the order of the graph."""
        pools: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            if node.kind != "tool":
                pools.setdefault(node.pool_name, []).append(node)
        return pools

    def stages(self, scale: float) -> dict[str, StageCost]:
        """The cost of each node's calls, with the stages' own SLOs at `scale` × the standalone latency."""
        return {node.name: self._stage(node, scale) for node in self.graph.nodes}

    def _stage(self, node: Node, scale: float) -> StageCost:
        table = self.tables[node.module]
        if node.kind == "tool":
            return tool_stage(node, table, EXECUTE_SECONDS)
        if node.kind == "image":
            low, high = default_steps(node.module) or (USUAL_STEPS, USUAL_STEPS + 1)
            return image_stage(node, table, scale, (low + high - 1) // 2)
        typical = TYPICAL[node.name]
        return llm_stage(node, table, scale, typical_size=typical.size, typical_units=typical.units)

    def workload(
        self, rate: float, cv: float, *, seed: int | None = None, deadline: float | None = None
    ) -> WorkflowWorkload:
        """The workflows that come. Without a seed: the artifact's seed of that cv for its trace, else 0."""
        if self.tasks:
            tasks = list(self.tasks[: self.num])
            return PlotTrace(tasks, rate, cv, seed=seed, deadline=deadline)
        return SampledWorkflows(self.workflow, TYPICAL, self.num, rate, cv, seed=seed or 0, deadline=deadline)

    def default_replicas(self) -> dict[str, int]:
        """As published: by pool; where pools are merged, their sum."""
        dedicated = {node.name: node.pool_name for node in self.workflow.nodes}
        return {
            pool: sum(PUBLISHED_REPLICAS.get(name, 1) for name in {dedicated[node.name] for node in nodes})
            for pool, nodes in self.pool_nodes.items()
        }

    def parse_replicas(self, text: str) -> dict[str, int]:
        """`1:2:1` as replicas by pool, in the order of the graph. Raises ValueError, one line."""
        names = list(self.pool_nodes)
        parts = text.split(":")
        if len(parts) != len(names) or not all(part.isdecimal() and int(part) for part in parts):
            example = ":".join("1" for _ in names)
            raise ValueError(f"--replicas gives a number for each of {':'.join(names)}, like {example}; got {text!r}")
        return {name: int(part) for name, part in zip(names, parts, strict=True)}

    def pools(
        self, replicas: Mapping[str, int], tables: Mapping[str, LatencyTable] | None = None
    ) -> dict[str, PoolPlan]:
        """Simulated replicas for every pool; tools get one with `seats` seats. `tables` are of pools with their own."""
        plans = {}
        for pool, nodes in self.pool_nodes.items():
            own = (tables or {}).get(pool)
            table = own or self.tables[nodes[0].module]
            options = {"max_num_batched_tokens": MAX_BATCHED_TOKENS} if nodes[0].kind == "llm" else {}
            plans[pool] = PoolPlan(replicas[pool], default_device(table, **options), table=own)
        for node in self.workflow.nodes:
            if node.kind == "tool":
                plans[node.pool_name] = PoolPlan(1, seats=self.seats)
        return plans

    def run(
        self,
        replicas: Mapping[str, int],
        budget: str,
        policy: str | Callable[[LatencyTable], StepPolicy],
        scale: float,
        workload: WorkflowWorkload,
        binding: Binding = "late",
        tables: Mapping[str, LatencyTable] | None = None,
    ) -> WorkflowResult:
        """Simulate it once; `policy` is a name, or makes one from a model's table.

        `tables` has those of pools whose replicas are not as the model's table says, of several devices for example.
        SLOs stay as they are.
        Raises ValueError for a policy that does not serve one of the models.
        """
        pools = self.pools(replicas, tables)
        devices = {nodes[0].module: pools[pool].device for pool, nodes in self.pool_nodes.items()}

        def policy_of(cost: StageCost) -> StepPolicy:
            device = devices[cost.node.module]
            assert device is not None
            return named_policy(policy, cost.table, device) if isinstance(policy, str) else policy(cost.table)

        return simulate_workflows(self.graph, self.stages(scale), pools, policy_of, budget, workload, binding=binding)

    def check_policy(self, policy: str) -> None:
        """Raises ValueError, one line, where no such policy serves one of the models."""
        pools = self.pools(self.default_replicas())
        for pool, nodes in self.pool_nodes.items():
            device = pools[pool].device
            assert device is not None
            named_policy(policy, self.tables[nodes[0].module], device)


def make_scenario(
    name: str,
    tables: Path,
    device: str | None,
    *,
    trace: Path | None = None,
    revise_from: str = "code",
    num: int | None = None,
    pooled: bool = False,
) -> Scenario:
    """Read everything that a simulation of workflow `name` needs. Raises ValueError, one line.

    `tables` holds the artifact's files, or `<device>/<model>.json` for each model.
    """
    workflow = find_workflow(name)
    if not tables.is_dir():
        raise ValueError(f"--tables {tables} is not a folder")
    if (tables / ARTIFACT_TABLES).exists() and device is None:
        found = _artifact_tables(workflow, tables / ARTIFACT_TABLES)
        if trace is None and name == "plot" and (tables / ARTIFACT_TRACE).exists():
            trace = tables / ARTIFACT_TRACE
    else:
        found = _project_tables(workflow, tables, device)
    if trace is not None and name != "plot":
        raise ValueError(f"--trace is of the workflow plot; {name} is sampled")
    tasks = tuple(read_trace(trace, revise_from=revise_from)) if trace is not None else ()
    if tasks and num is not None and num > len(tasks):
        raise ValueError(f"--requests {num} is more than the {len(tasks)} of {trace}")
    return Scenario(workflow, found, tasks, num or len(tasks) or NUM_WORKFLOWS, is_pooled=pooled)


def _artifact_tables(workflow: Workflow, path: Path) -> dict[str, LatencyTable]:
    known = read_tables(path)
    found = {}
    for node in workflow.nodes:
        name = ARTIFACT_NAMES.get(node.module)
        if node.kind == "tool":
            found[node.module] = tool_table(node.module)
        elif name in known:
            found[node.module] = replace(known[name], model=node.module)
        else:
            raise TableError(f"{path} has no table of {node.module}; give --device for <device>/{node.module}.json")
    return found


def _project_tables(workflow: Workflow, folder: Path, device: str | None) -> dict[str, LatencyTable]:
    if device is None:
        raise ValueError(f"give --device: {folder} has no {ARTIFACT_TABLES}, but a folder for each device")
    return {
        node.module: tool_table(node.module) if node.kind == "tool" else find_table(folder, device, node.module)
        for node in workflow.nodes
    }
