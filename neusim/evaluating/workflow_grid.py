"""Rules for whole workflows on settings and seeds: one row of figures for each, in worker processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from neusim.evaluating.artifact_llm import ArtifactLlm
from neusim.evaluating.kept import Kept
from neusim.sim.parallel import outcomes
from neusim.sim.workflow_command import BINDINGS, binding_pool
from neusim.sim.workflow_setup import Scenario
from neustream.policies import StepPolicy
from neustream.tables import LatencyTable
from neustream.workflow.budget import make_budget

Row = dict[str, Any]
ARTIFACT = "artifact"
"""The policy of `ArtifactLlm`, and the seed that the artifact has for its arrivals."""
POOLING = {"dedicated": False, "pooled": True}
KEYS = ("rule", "rate", "cv", "slo_scale", "seed", "deadline", "revise_lengths", "requests")
"""What tells one run from the others."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How workflows are served: budget rule, step policy, binding, one pool for a node or for a model."""

    budget: str
    policy: str
    binding: str
    pooling: str

    def __str__(self) -> str:
        return f"{self.budget}:{self.policy}:{self.binding}:{self.pooling}"

    def builder(self) -> str | Callable[[LatencyTable], StepPolicy]:
        """What makes the policy of a replica."""
        return ArtifactLlm if self.policy == ARTIFACT else self.policy


def parse_rule(text: str) -> Rule:
    """`BUDGET:POLICY:late|roundrobin:dedicated|pooled`. Raises ValueError, one line."""
    parts = text.split(":")
    if len(parts) != 4:
        raise ValueError(f"a rule is BUDGET:POLICY:BINDING:POOLING, like carry:neustream:late:pooled; got {text!r}")
    rule = Rule(*parts)
    make_budget(rule.budget)
    for value, known in ((rule.binding, BINDINGS), (rule.pooling, POOLING)):
        if value not in known:
            raise ValueError(f"rule {text!r}: {value!r} is none of {', '.join(known)}")
    return rule


@dataclass(frozen=True, slots=True)
class Setting:
    """A point of the sweep: workflows per second, spread of the gaps, SLO scale of the stages."""

    rate: float
    cv: float
    slo_scale: float

    def __str__(self) -> str:
        return f"{self.rate:g}/{self.cv:g}/{self.slo_scale:g}"


def parse_setting(text: str) -> Setting:
    """`RATE/CV/SCALE`. Raises ValueError, one line."""
    try:
        rate, cv, scale = (float(part) for part in text.split("/"))
    except ValueError as error:
        raise ValueError(f"a setting is RATE/CV/SCALE, like 0.7/1/1.8; got {text!r}") from error
    if not (rate > 0 and cv > 0 and scale >= 1):
        raise ValueError(f"setting {text!r}: RATE and CV must be above 0 and SCALE at least 1")
    return Setting(rate, cv, scale)


@dataclass(frozen=True, slots=True)
class WorkflowGrid:
    """Every rule on every setting with every seed."""

    scenario: Scenario
    revise_lengths: str
    rules: tuple[Rule, ...]
    settings: tuple[Setting, ...]
    seeds: tuple[str, ...]
    deadline: float | None = None

    def check(self) -> None:
        """Raises ValueError, one line, for a policy that does not serve one of the models."""
        for rule in self.rules:
            if rule.policy != ARTIFACT:
                self.scenario.check_policy(rule.policy)

    @property
    def tasks(self) -> list[tuple[Setting, str, Rule]]:
        """All runs, in order."""
        return list(itertools.product(self.settings, self.seeds, self.rules))

    def key(self, task: tuple[Setting, str, Rule]) -> Row:
        """The columns that name a run."""
        setting, seed, rule = task
        values = (str(rule), setting.rate, setting.cv, setting.slo_scale, seed, self.deadline)
        return dict(zip(KEYS, (*values, self.revise_lengths, self.scenario.num), strict=True))

    def row(self, task: tuple[Setting, str, Rule]) -> Row:
        """Simulate one of them."""
        setting, seed, rule = task
        scenario = replace(self.scenario, is_pooled=POOLING[rule.pooling])
        number = None if seed == ARTIFACT else int(seed)
        load = scenario.workload(setting.rate, setting.cv, seed=number, deadline=self.deadline)
        replicas, binding = scenario.default_replicas(), BINDINGS[rule.binding]
        found = scenario.run(replicas, rule.budget, rule.builder(), setting.slo_scale, load, binding).summary
        figures = (
            "good",
            "stages_in_time",
            "turned_away",
            "rejected",
            "late",
            "failed",
            "workflow_goodput",
            "work_lost",
        )
        tokens = {f"tokens {name}": rates["token_goodput"] for name, rates in found["nodes"].items()}
        return {**self.key(task), **{name: found[name] for name in figures}, **tokens, "binds": binding_pool(found)}


def run_workflows(grid: WorkflowGrid, processes: int, on_done: Callable[[], object], kept: Kept) -> list[Row]:
    """Run them all; what `kept` has is not run again. Rows in the order of the tasks."""
    tasks = grid.tasks
    rows = {i: kept.rows[kept.key(grid.key(task))] for i, task in enumerate(tasks) if kept.has(grid.key(task))}
    for _ in rows:
        on_done()
    todo = [i for i in range(len(tasks)) if i not in rows]
    for at, row in outcomes(grid.row, [tasks[i] for i in todo], processes):
        rows[todo[at]] = row
        kept.add(row)
        on_done()
    return [rows[i] for i in range(len(tasks))]
