"""Workflows: graphs of calls to modules, with branches that depend on results and loops that have a bound.

A workflow is above a request. Each visit of a node is one call: an ordinary request to the module that serves the node.
One call of a workflow is under way at a time, and its result chooses the edge to the next node.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

NodeKind = Literal["llm", "image", "tool"]


@dataclass(frozen=True, slots=True)
class Node:
    """One step of a workflow: what is called, and which pool of replicas serves it."""

    name: str
    module: str
    """The model or tool that serves it; its latency table has this name."""
    kind: NodeKind = "llm"
    max_units: int = 1
    """The most output units that a call may deliver: `max_tokens` of a language model, 1 of a tool or an image."""
    pool: str = ""
    """The pool that serves it; by default one of its own. Nodes of the same module may name the same pool."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a node needs a name")
        if self.max_units < 1:
            raise ValueError(f"node {self.name!r}: max_units must be at least 1, got {self.max_units}")

    @property
    def pool_name(self) -> str:
        """The pool that its calls queue in."""
        return self.pool or self.name


@dataclass(frozen=True, slots=True)
class Edge:
    """From one node to the next. `when` names the result that takes it; without one it takes every other result."""

    source: str
    target: str
    when: str | None = None
    at_most: int | None = None
    """How often one workflow may take it; afterwards results go the way that is left. None: as often as they come."""

    def __post_init__(self) -> None:
        if self.at_most is not None and self.at_most < 1:
            raise ValueError(f"edge {self.source} -> {self.target}: at_most must be at least 1, got {self.at_most}")

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}" + (f" when {self.when}" if self.when is not None else "")


@dataclass(frozen=True, slots=True)
class Workflow:
    """A graph of nodes; the first one is where it starts. A node with no edge left to take is where it ends.

    Raises ValueError, one line, for a name that is used twice, an edge to an unknown node, two edges for one result, a
    node that no path reaches, and a cycle without a bound.
    """

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...] = ()

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ValueError(f"workflow {self.name!r} has no node")
        names = [node.name for node in self.nodes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"workflow {self.name!r}: two nodes are called {name!r}")
        seen = set()
        for edge in self.edges:
            for end in (edge.source, edge.target):
                if end not in names:
                    known = ", ".join(names)
                    raise ValueError(f"workflow {self.name!r}: edge {edge} names {end!r}; the nodes are {known}")
            key = edge.source, edge.when, edge.at_most is None
            if key in seen:
                raise ValueError(f"workflow {self.name!r}: two edges leave {edge.source!r} for the same result")
            seen.add(key)
        self._check_reach(names)
        self._check_bounds(names)

    @property
    def start(self) -> Node:
        """Where it begins."""
        return self.nodes[0]

    def __getitem__(self, name: str) -> Node:
        """The node of that name. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def leaving(self, name: str) -> list[Edge]:
        """The edges that leave a node, as written."""
        return [edge for edge in self.edges if edge.source == name]

    def follow(self, name: str, label: str, taken: Mapping[Edge, int]) -> Edge | None:
        """The edge that a result `label` of node `name` takes, `taken` telling how often each was; None: it ends.

        An edge for this very result is preferred to one for every other result, a bounded one to one without a bound.
        """
        open_edges = [
            edge
            for edge in self.leaving(name)
            if edge.when in (None, label) and (edge.at_most is None or taken.get(edge, 0) < edge.at_most)
        ]
        open_edges.sort(key=lambda edge: (edge.when is None, edge.at_most is None))
        return open_edges[0] if open_edges else None

    def check_served(self, pools: Collection[str]) -> None:
        """Raises ValueError, one line, where a node's pool is none of these."""
        for node in self.nodes:
            if node.pool_name not in pools:
                known = ", ".join(sorted(pools)) or "none"
                message = (
                    f"nobody serves node {node.name!r} ({node.module}, pool {node.pool_name!r}); there are {known}"
                )
                raise ValueError(f"workflow {self.name!r}: {message}")

    def _check_reach(self, names: list[str]) -> None:
        reached, todo = set(), [names[0]]
        while todo:
            name = todo.pop()
            if name not in reached:
                reached.add(name)
                todo.extend(edge.target for edge in self.leaving(name))
        for name in names:
            if name not in reached:
                raise ValueError(f"workflow {self.name!r}: no path from {names[0]!r} reaches node {name!r}")

    def _check_bounds(self, names: list[str]) -> None:
        """Without the bounded edges there must be no cycle: then every walk ends."""
        done: set[str] = set()
        path: list[str] = []

        def visit(name: str) -> None:
            if name in path:
                cycle = " -> ".join([*path[path.index(name) :], name])
                raise ValueError(f"workflow {self.name!r}: the cycle {cycle} has no bound; give an edge of it at_most")
            if name in done:
                return
            path.append(name)
            for edge in self.leaving(name):
                if edge.at_most is None:
                    visit(edge.target)
            path.pop()
            done.add(name)

        for name in names:
            visit(name)


def pool_by_module(workflow: Workflow) -> Workflow:
    """The same workflow with one pool, named after the module, for all nodes that one model serves.

    Tools keep their pools.
    """
    nodes = (node if node.kind == "tool" else replace(node, pool=node.module) for node in workflow.nodes)
    return replace(workflow, nodes=tuple(nodes))
