"""`simulate.py --workflow` as a user runs it; loads that are drawn; what workloads ask of the nodes on average."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neusim import simulate
from neusim.allocating.fluid import fluid_capacity, measure_demand, seconds_per_workflow
from neusim.allocating.spread import spread_table
from neusim.sim.agent_trace import PlotTrace
from neusim.sim.sampled_workflows import BRANCH_SHARE, SampledWorkflows
from neusim.sim.workflow_setup import make_scenario
from neustream import LatencyTable, save_table
from neustream.capacity import llm_capacity
from neustream.catalog.workflows import PICTURE, PLOT, PLOT_REPAIR, TYPICAL
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.tables import table_path
from neustream.workflow import Node, Workflow, pool_by_module

TABLE = {
    "prefill_tokens": [32, 4096], "prefill_seconds": [0.01, 0.3], "kv_blocks": 1000,
    "prefill_fit": {"c0": 0.01, "per_token": 7e-5, "per_token_squared": 0.0},
    "decode_fit": {"c0": 0.015, "per_context_token": 7e-7},
}  # fmt: skip
TRACE = {
    "template_chars": {"codellama_1": 400, "llava": 800, "codellama_2": 600},
    "requests": [
        {"expert_chars": 900, "simple_chars": 80, "codellama_1_output_tokens": 50 + i, "llava_output_tokens": 60}
        for i in range(12)
    ],
}


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    folder = tmp_path / "tables"
    llm = {"prefill": TokensLatency((0.01, 1e-4, 0.0)), "decode": ContextLatency((0.01, 1e-7))}
    loop = {"text_encoder": BatchLatency((1, 2), (0.01, 0.015)), "denoise": BatchLatency((1, 4), (0.02, 0.05)),
            "vae": BatchLatency((1, 2), (0.05, 0.1))}  # fmt: skip
    for table in (
        LatencyTable("codellama-7b", "gpu", llm, {"kv_blocks": 900}),
        LatencyTable("llava-1.5-7b", "gpu", llm, {"kv_blocks": 900}),
        LatencyTable("opt-125m", "gpu", llm, {"kv_blocks": 900}),
        LatencyTable("sd-nano", "gpu", loop),
    ):
        save_table(table, table_path(folder, table.device, table.model))
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "agents_tables.json").write_text(json.dumps({"codellama": TABLE, "llava": TABLE}))
    (folder / "agents_trace.json").write_text(json.dumps(TRACE))
    return folder


def run(tables: Path, *arguments: str, workflow: str = "plot") -> int:
    return simulate.main(["--workflow", workflow, "--tables", str(tables), "--processes", "1", *arguments])


def test_budgets_and_policies_are_swept_and_every_run_is_an_object(artifact, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = ["--policy", "fcfs,slack", "--budget", "carry,lookahead", "--rate", "0.5,2", "--json", str(out)]
    assert run(artifact, *arguments) == 0
    rows = json.loads(out.read_text())
    assert [(row["rate"], row["budget"], row["policy"]) for row in rows] == [
        (rate, budget, policy) for rate in (0.5, 2) for budget in ("carry", "lookahead") for policy in ("fcfs", "slack")
    ]
    for row in rows:
        assert row["requests"] == 12
        assert row["good"] + row["late"] + row["rejected"] + row["failed"] + row["aborted"] == 12
        assert row["replicas"] == {"write_code": 1, "look": 2, "revise_code": 1}
        assert set(row["nodes"]) == {"write_code", "look", "revise_code"}
        assert set(row["pools"]) == {"write_code", "execute", "look", "revise_code"}
    printed = capsys.readouterr().out
    assert "12 recorded workflows; replicas: write_code 1, look 2, revise_code 1" in printed
    assert all(word in printed for word in ("in time", "work lost", "longest wait", "tokens in time/s", "p/s", "d/s"))


def test_one_pool_for_a_model_serves_its_nodes_with_the_replicas_of_both(artifact, tmp_path):
    out = tmp_path / "out.json"
    assert run(artifact, "--rate", "0.5", "--pool-same-model", "--json", str(out)) == 0
    (row,) = json.loads(out.read_text())
    assert row["replicas"] == {"codellama-7b": 2, "llava-1.5-7b": 2}
    assert set(row["nodes"]) == {"write_code", "look", "revise_code"}
    assert pool_by_module(PLOT)["execute"].pool_name == "execute"


def test_the_artifacts_tables_are_known_by_the_models_of_the_catalog(artifact):
    """Under the names of its file nothing is known of them: no move could join devices."""
    tables = make_scenario("plot", artifact, None).tables
    assert spread_table(tables["codellama-7b"], 2) is not None
    assert spread_table(tables["llava-1.5-7b"], 2) is not None


def test_devices_are_split_by_the_fluid_capacity(artifact, tmp_path, capsys):
    flags = ["--workflow", "plot", "--tables", str(artifact), "--rate", "1", "--processes", "1"]
    assert simulate.main([*flags, "--devices", "5", "--json", str(tmp_path / "runs.json")]) == 0
    (row,) = json.loads((tmp_path / "runs.json").read_text())
    assert sum(row["replicas"].values()) == 5
    for more, says in (
        (["--devices", "2"], "need 3 devices at least, got 2"),
        (["--devices", "3", "--replicas", "1:1:1"], "exclude each other"),
    ):
        with pytest.raises(SystemExit) as caught:
            simulate.main([*flags, *more])
        assert caught.value.code == 2
        assert says in capsys.readouterr().err


def test_one_deadline_for_all_is_what_runs_are_judged_by(artifact, tmp_path):
    out = tmp_path / "out.json"
    assert run(artifact, "--rate", "0.2", "--deadline", "2,600", "--json", str(out)) == 0
    assert [row["good"] for row in json.loads(out.read_text())] == [0, 12]


@pytest.mark.parametrize("workflow", ["plot", "plot-repair", "picture"])
def test_every_workflow_of_the_catalog_runs_on_sampled_calls(tables, tmp_path, workflow):
    out = tmp_path / "out.json"
    assert (
        run(tables, "--device", "gpu", "--rate", "0.1", "--requests", "15", "--json", str(out), workflow=workflow) == 0
    )
    (row,) = json.loads(out.read_text())
    assert (row["requests"], row["good"]) == (15, 15)


def test_without_a_rate_the_fluid_capacity_is_offered(artifact, tmp_path):
    out = tmp_path / "out.json"
    assert run(artifact, "--json", str(out)) == 0
    scenario = make_scenario("plot", artifact, None)
    capacity = fluid_capacity(scenario, measure_demand(scenario), 1.8, scenario.default_replicas())
    assert json.loads(out.read_text())[0]["rate"] == pytest.approx(capacity, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--budget", "hope"], "unknown budget rule 'hope'; there are carry, proportional, lookahead"),
        (["--policy", "clockwork"], "clockwork"),
        (["--replicas", "1:2"], "a number for each of write_code:look:revise_code, like 1:1:1; got '1:2'"),
        (["--replicas", "1:0:1"], "got '1:0:1'"),
        (["--rate", "0"], "must be above 0"),
        (["--slo-scale", "0.5"], "must be at least 1"),
        (["--requests", "13"], "--requests 13 is more than the 12 of"),
        (["--device", "gpu"], "no table of codellama-7b on gpu"),
        (["--json", "/nowhere/x.json"], "--json /nowhere/x.json cannot be written"),
        (["--trace", "/nowhere.json"], "/nowhere.json: cannot be read"),
        (["--binding", "soon"], "--binding"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(artifact, capsys, arguments, says):
    with pytest.raises(SystemExit) as caught:
        run(artifact, *arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_an_unknown_workflow_and_a_trace_of_another_one_are_refused(artifact, tables, capsys):
    for name, more, says in (
        ("poem", [], "unknown workflow 'poem'; there are plot, plot-repair, picture"),
        ("picture", [], "has no table of opt-125m; give --device"),
        ("plot-repair", ["--trace", str(artifact / "agents_trace.json")], "--trace is of the workflow plot"),
    ):
        with pytest.raises(SystemExit):
            run(artifact, *more, workflow=name)
        assert says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tables)
    assert "give --device" in capsys.readouterr().err


def test_sampled_workflows_are_the_same_each_time_and_take_their_branches():
    load = SampledWorkflows(PLOT_REPAIR, TYPICAL, 400, 1.0, 1.0, seed=3)
    again = SampledWorkflows(PLOT_REPAIR, TYPICAL, 400, 1.0, 1.0, seed=3)
    node = PLOT_REPAIR["execute"]
    labels = []
    for one, two in zip(load.runs(PLOT_REPAIR), again.runs(PLOT_REPAIR), strict=True):
        size = load.size(one, node)
        for run in (one, two):
            run.enter(node, size, 0.0)
        assert load.truth(one, node) == load.truth(one, node) == again.truth(two, node)
        labels.append(load.truth(one, node).label)
    assert labels.count("failed") / 400 == pytest.approx(BRANCH_SHARE, abs=0.05)
    with pytest.raises(ValueError, match="nothing says how large the calls of 'x' are"):
        SampledWorkflows(Workflow("w", (Node("x", "m"),)), TYPICAL, 1, 1.0, 1.0)


def test_demand_is_the_mean_of_what_the_workflows_ask(artifact):
    scenario = make_scenario("plot", artifact, None)
    demand = measure_demand(scenario)
    assert demand["write_code"].visits == 1.0
    assert demand["write_code"].units == round(55.5)
    assert demand["look"].size == 576 + 220 + round(0.9 * 55.5)
    load = scenario.workload(1.0, 1.0)
    assert isinstance(load, PlotTrace)
    seconds = [task.seconds[0] for task in load.tasks]
    assert demand["execute"].seconds == pytest.approx(sum(seconds) / 12)


def test_fluid_capacity_is_that_of_the_pool_that_is_asked_for_most(artifact):
    scenario = make_scenario("plot", artifact, None)
    demand = measure_demand(scenario)
    look = demand["look"]
    alone = llm_capacity(scenario.tables["llava-1.5-7b"], prompt=look.size, max_tokens=look.units, dslo=1.8)
    assert fluid_capacity(scenario, demand, 1.8, {"write_code": 9, "look": 1, "revise_code": 9}) == pytest.approx(alone)
    seconds = seconds_per_workflow(scenario, demand, 1.8)
    pooled = make_scenario("plot", artifact, None, pooled=True)
    together = seconds_per_workflow(pooled, demand, 1.8)
    assert together["codellama-7b"] == pytest.approx(seconds["write_code"] + seconds["revise_code"])


def test_repairs_are_visits_of_their_own(tables):
    demand = measure_demand(make_scenario("plot-repair", tables, "gpu"))
    expected = BRANCH_SHARE * (1 - BRANCH_SHARE**4) / (1 - BRANCH_SHARE)
    assert demand["repair_code"].visits == pytest.approx(expected, abs=0.08)
    assert demand["execute"].visits == pytest.approx(1 + demand["repair_code"].visits)
    assert measure_demand(make_scenario("picture", tables, "gpu"))["paint"].visits > 1.0
    assert PICTURE.start.name == "rewrite_prompt"
