"""The allocator: the exact model against enumeration, the search against every split, the command."""

from __future__ import annotations

import itertools
import random

import pytest

from neusim import allocate
from neusim.allocating.model import best_split
from neusim.allocating.search import Plan, Search
from neusim.sim.workflow_load import tool_table
from neusim.sim.workflow_setup import Scenario
from neustream import LatencyTable
from neustream.catalog.workflows import PLOT
from neustream.latency import ContextLatency, TokensLatency


def splits(num: int, devices: int):
    return [s for s in itertools.product(range(1, devices + 1), repeat=num) if sum(s) == devices]


def test_the_model_finds_the_split_of_the_largest_fluid_capacity():
    dice = random.Random(0)
    for _ in range(40):
        seconds = {name: dice.uniform(0.1, 5.0) for name in "abc"}
        devices = dice.randint(3, 9)
        counts, capacity = best_split(seconds, devices)
        best = max(min(n / s for n, s in zip(split, seconds.values(), strict=True)) for split in splits(3, devices))
        assert capacity == pytest.approx(best)
        assert sum(counts.values()) == devices


def test_the_artifacts_fluid_figures_give_its_own_split():
    """Capacities per replica at 1.8: 0.952, 0.319 and 0.648 workflows/s."""
    counts, capacity = best_split({"write": 1 / 0.952, "look": 1 / 0.319, "revise": 1 / 0.648}, 4)
    assert counts == {"write": 1, "look": 2, "revise": 1}
    assert capacity == pytest.approx(0.638)
    with pytest.raises(ValueError, match=r"3 pools .* need 3 devices at least, got 2"):
        best_split({"a": 1.0, "b": 1.0, "c": 1.0}, 2)


def scenario() -> Scenario:
    llm = {"prefill": TokensLatency((0.01, 1e-4, 0.0)), "decode": ContextLatency((0.05, 2e-5))}
    tables = {
        "codellama-7b": LatencyTable("codellama-7b", "gpu", llm, {"kv_blocks": 400}),
        "llava-1.5-7b": LatencyTable("llava-1.5-7b", "gpu", llm, {"kv_blocks": 400}),
        "code-executor": tool_table("code-executor"),
    }
    return Scenario(PLOT, tables, num=30)


@pytest.mark.parametrize("devices", [4, 6])
def test_the_search_is_within_one_percent_of_every_split(devices):
    _, capacity = Search(scenario(), devices, rate=1.0).start(is_pooled=False)

    def search() -> Search:
        return Search(scenario(), devices, rate=1.1 * capacity, policy="neustream", budget="carry", may_pool=False)

    found = search()
    best = found.run()
    names, every = list(found.scenario.pool_nodes), search()
    goods = [every.good(Plan(tuple(zip(names, s, strict=True)), False)) for s in splits(3, devices)]
    assert min(goods) < max(goods)
    assert found.good(best) >= 0.99 * max(goods)
    assert len(found.tried) <= len(goods)


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        allocate.main(["--workflow", "plot", "--devices", "4", "--rate", "1,2", "--tables", str(tmp_path)])
    assert caught.value.code == 2
    assert "--rate takes one number here" in capsys.readouterr().err
