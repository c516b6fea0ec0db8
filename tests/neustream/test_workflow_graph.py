"""Workflow graphs: what is refused, which way results go, and that every walk ends."""

from __future__ import annotations

import random

import pytest
from workflow_helpers import EXECUTE, LOOK, LOOP, REPAIR, WRITE

from neustream.workflow.graph import Edge, Node, Workflow


def test_a_result_takes_its_own_edge_as_often_as_that_is_allowed_and_then_the_plain_one():
    taken: dict[Edge, int] = {}
    ways = []
    for _ in range(3):
        edge = LOOP.follow("execute", "failed", taken)
        assert edge is not None
        taken[edge] = taken.get(edge, 0) + 1
        ways.append(edge.target)
    assert ways == ["repair", "repair", "look"]
    plain = LOOP.follow("execute", "ok", {})
    assert plain is not None
    assert plain.target == "look"
    assert LOOP.follow("look", "ok", {}) is None


@pytest.mark.parametrize(
    ("nodes", "edges", "message"),
    [
        ((), (), "has no node"),
        ((WRITE, WRITE), (), "two nodes are called 'write'"),
        ((WRITE,), (Edge("write", "look"),), "names 'look'; the nodes are write"),
        ((WRITE, LOOK), (), "no path from 'write' reaches node 'look'"),
        ((WRITE, LOOK), (Edge("write", "look"), Edge("look", "write")), "cycle write -> look -> write has no bound"),
        ((WRITE,), (Edge("write", "write"),), "cycle write -> write has no bound"),
        (
            (WRITE, LOOK, EXECUTE),
            (Edge("write", "look"), Edge("write", "execute")),
            "two edges leave 'write' for the same result",
        ),
    ],
)
def test_a_graph_that_cannot_be_is_refused_in_one_line(nodes, edges, message):
    with pytest.raises(ValueError, match=message) as refused:
        Workflow("w", nodes, edges)
    assert "\n" not in str(refused.value)


def test_bad_nodes_and_edges_are_refused():
    with pytest.raises(ValueError, match="max_units must be at least 1, got 0"):
        Node("a", "m", max_units=0)
    with pytest.raises(ValueError, match="a node needs a name"):
        Node("", "m")
    with pytest.raises(ValueError, match="a -> b: at_most must be at least 1, got 0"):
        Edge("a", "b", at_most=0)


def test_a_node_that_nobody_serves_is_named():
    with pytest.raises(ValueError, match=r"nobody serves node 'execute' \(t, pool 'execute'\); there are look, write"):
        LOOP.check_served({"write", "look"})
    LOOP.check_served({REPAIR.pool_name, "execute", "look"})


def test_every_random_graph_that_is_accepted_ends_whatever_the_results():
    dice = random.Random(0)
    accepted = 0
    for _ in range(1200):
        names = [f"n{i}" for i in range(dice.randint(1, 5))]
        nodes = tuple(Node(name, "m") for name in names)
        edges = tuple(
            Edge(dice.choice(names), dice.choice(names), dice.choice([None, "x"]), dice.choice([None, 1, 2, 3]))
            for _ in range(dice.randint(0, 8))
        )
        try:
            workflow = Workflow("w", nodes, edges)
        except ValueError:
            continue
        accepted += 1
        name, taken, steps = workflow.start.name, dict[Edge, int](), 0
        while (edge := workflow.follow(name, dice.choice(["x", "y"]), taken)) is not None:
            taken[edge] = taken.get(edge, 0) + 1
            name, steps = edge.target, steps + 1
            assert steps < 500, workflow
    assert accepted > 50
