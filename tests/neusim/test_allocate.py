"""The allocator: the exact model against enumeration, the search against every split, the command."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from neusim import allocate
from neusim.allocating.model import best_split
from neusim.allocating.online import decide, devices_that_move
from neusim.allocating.plan import Plan, shifts, spreads
from neusim.allocating.search import Search, every_plan
from neusim.allocating.spread import spread_table
from neusim.sim.workflow_load import tool_table
from neusim.sim.workflow_setup import Scenario
from neustream import LatencyTable, save_table
from neustream.catalog.workflows import PLOT
from neustream.latency import ContextLatency, Shape, TokensLatency
from neustream.tables import table_path


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


@pytest.mark.parametrize(
    ("devices", "is_pooled"),
    [(4, False), (6, True), *(pytest.param(8, kind, marks=pytest.mark.slow) for kind in (False, True))],
)
def test_the_search_is_within_one_percent_of_every_split(devices, is_pooled):
    world = replace(scenario(), is_pooled=is_pooled, num=16)
    _, capacity = Search(world, devices, rate=1.0).start(is_pooled)

    def search() -> Search:
        rate = 1.1 * capacity
        return Search(world, devices, rate, budget="carry", may_pool=False, may_spread=False)

    found, every = search(), search()
    best = found.run()
    goods = [every.good(plan) for plan in every_plan(list(world.pool_nodes), devices, is_pooled)]
    assert min(goods) < max(goods)
    assert found.good(best) >= 0.99 * max(goods)
    assert best.is_pooled is is_pooled
    assert best.num_devices == devices


def test_moves_shift_a_replica_and_join_or_split_them():
    plan = Plan((("a", 1), ("b", 2)), False)
    assert [str(move) for move in shifts(plan)] == ["a 2, b 1 (one pool a node)"]
    (joined,) = spreads(plan)
    assert str(joined) == "a 1, b 1 x 2 devices (one pool a node)"
    assert list(spreads(joined)) == [plan]
    assert list(shifts(joined)) == []
    assert plan.num_devices == joined.num_devices == 3


def test_a_model_over_two_devices_is_faster_but_not_twice_and_has_more_than_twice_the_memory():
    table = replace(scenario().tables["codellama-7b"], device="rtx4090")
    wide = spread_table(table, 2)
    assert wide is not None
    for module, shape in (("prefill", Shape(1, 500, 250_000, 500)), ("decode", Shape(4, 0, 0, 4000))):
        one, two = table[module].predict(shape), wide[module].predict(shape)
        assert one / 2 < two < one
    assert wide.kv_blocks > 2 * table.kv_blocks
    assert (wide.tensor_parallel, spread_table(table, 1)) == (2, table)
    assert spread_table(scenario().tables["codellama-7b"], 2) is None  # a device that nothing is known of
    assert spread_table(table, 3) is None  # 32 heads


def test_joined_devices_serve_more_where_one_has_memory_for_a_single_call():
    tables = {
        name: table if table.device == "cpu" else replace(table, device="rtx4090", info={"kv_blocks": 170})
        for name, table in scenario().tables.items()
    }
    search = Search(replace(scenario(), tables=tables, num=8), 4, rate=0.2, deadline=400.0, policy="fcfs")
    apart = Plan((("write_code", 1), ("look", 2), ("revise_code", 1)), False)
    (joined,) = spreads(apart)
    assert joined in list(search._moves(apart))
    assert search.good(apart) < search.good(joined)


def test_a_running_plan_is_left_only_for_a_gain_that_pays_the_restart():
    now, then = Plan((("a", 2), ("b", 2)), False), Plan((("a", 1), ("b", 3)), False)
    figures = {"good_now": 60, "good_then": 90, "window": 100.0, "horizon": 60.0, "restart": 20.0}
    moved = decide(now, then, **figures)
    assert moved.moves
    assert moved.gain == pytest.approx(0.3 * 40)
    assert moved.cost == pytest.approx(0.6 * 20 / 4)
    assert not decide(now, then, **figures | {"restart": 59.0}).moves
    assert "does not exceed" in decide(now, then, **figures | {"restart": 59.0}).reason
    assert "chance" in decide(now, then, **figures | {"good_then": 63}).reason
    assert not decide(now, then, **figures | {"good_then": 50}).moves
    assert not decide(now, now, **figures).moves
    with pytest.raises(ValueError, match="restart must be a number of seconds above 0"):
        decide(now, then, **figures | {"restart": 0.0})


def test_devices_that_keep_their_process_do_not_move():
    plan = Plan((("a", 2), ("b", 2)), False)
    assert devices_that_move(plan, Plan((("a", 1), ("b", 3)), False)) == 1
    assert devices_that_move(plan, Plan((("a", 2), ("b", 1)), False, (("b", 2),))) == 2
    assert devices_that_move(plan, Plan((("c", 4),), True)) == 4


def test_the_command_draws_goodput_against_devices(tmp_path, capsys):
    folder = tmp_path / "tables"
    for table in scenario().tables.values():
        if table.device != "cpu":
            save_table(table, table_path(folder, "gpu", table.model))
    flags = ["--workflow", "plot", "--tables", str(folder), "--device", "gpu", "--rate", "0.1", "--requests", "8"]
    picture = tmp_path / "goodput.png"
    assert allocate.main([*flags, "--devices", "4", "--processes", "1", "--figure", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "plan: " in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        allocate.main([*flags, "--devices", "4", "--figure", str(tmp_path / "goodput.txt")])
    assert caught.value.code == 2
    assert "must end in .png, .svg or .pdf" in capsys.readouterr().err


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        allocate.main(["--workflow", "plot", "--devices", "4", "--rate", "1,2", "--tables", str(tmp_path)])
    assert caught.value.code == 2
    assert "--rate takes one number here" in capsys.readouterr().err
