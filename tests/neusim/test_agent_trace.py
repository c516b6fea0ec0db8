"""The plotting workflow as the artifact recorded it: its tables, its tasks, its arrivals."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from neusim.sim.agent_trace import PlotTrace, read_tables, read_trace
from neusim.sim.device import Device
from neusim.sim.workflow_load import PoolPlan
from neusim.sim.workflows import simulate_workflows
from neustream.catalog.workflows import EXECUTE_SECONDS, PLOT, TYPICAL
from neustream.policies import make_policy
from neustream.tables import TableError
from neustream.workflow import llm_stage, tool_stage
from neustream.workload import gamma_arrivals

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "agents"
TRACE = {
    "template_chars": {"codellama_1": 400, "llava": 800, "codellama_2": 600},
    "requests": [
        {"expert_chars": 40 * i, "simple_chars": 80, "codellama_1_output_tokens": 100 + i, "llava_output_tokens": None}
        for i in range(4)
    ],
}
TABLE = {
    "prefill_tokens": [32, 64], "prefill_seconds": [0.02, 0.03], "kv_blocks": 500,
    "prefill_fit": {"c0": 0.01, "per_token": 1e-4, "per_token_squared": 0.0},
    "decode_fit": {"c0": 0.015, "per_context_token": 1e-6},
}  # fmt: skip


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_sizes_are_a_quarter_of_the_characters_and_grow_with_what_earlier_nodes_wrote(tmp_path):
    load = PlotTrace(read_trace(write(tmp_path / "trace.json", TRACE)), 0.5, 1.0)
    run = next(load.runs(PLOT))
    sizes = {}
    for node in PLOT.nodes:
        sizes[node.name] = load.size(run, node)
        visit = run.enter(node, sizes[node.name], 0.0)
        visit.units = load.truth(run, node).units
    assert sizes["write_code"] == 100
    assert sizes["look"] == 576 + 220 + 90
    assert sizes["revise_code"] == 150 + 1000
    assert load.window == 8.0


def test_the_second_code_nodes_lengths_are_an_assumption_that_can_be_chosen(tmp_path):
    path = write(tmp_path / "trace.json", TRACE)
    code, vision = read_trace(path), read_trace(path, revise_from="vision")
    assert sorted(task.revise_units for task in code) == [100, 101, 102, 103]
    assert [task.revise_units for task in vision] == [1000] * 4
    with pytest.raises(ValueError, match="revise_from must be code or vision, got 'x'"):
        read_trace(path, revise_from="x")


def test_arrivals_are_those_of_the_artifacts_seed_for_their_cv(tmp_path):
    tasks = read_trace(write(tmp_path / "trace.json", TRACE))
    assert np.array_equal(PlotTrace(tasks, 0.7, 3.0).arrivals, gamma_arrivals(0.7, 3.0, 4, 8))
    assert np.array_equal(PlotTrace(tasks, 0.7, 3.0, seed=5).arrivals, gamma_arrivals(0.7, 3.0, 4, 5))
    due = [run.deadline - run.arrival for run in PlotTrace(tasks, 0.7, 3.0, deadline=60.0).runs(PLOT)]
    assert due == pytest.approx([60.0] * 4)


def test_tables_are_read_with_their_blocks_and_the_code_runners_beside_them(tmp_path):
    tables = read_tables(write(tmp_path / "tables.json", {"codellama": TABLE}))
    assert tables["codellama"].kv_blocks == 500
    assert tables["codellama"]["prefill"].alone(64) == pytest.approx(0.03)
    assert tables["execute"]["execute"].alone(1) == pytest.approx(np.exp(0.08))


@pytest.mark.parametrize(("text", "says"), [(None, "cannot be read"), ("{", "is no"), ('{"a": {}}', "is no")])
def test_files_that_are_missing_or_of_another_kind_are_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    for read, error in ((read_trace, ValueError), (read_tables, TableError)):
        with pytest.raises(error, match=says) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs the artifact's tables and trace")
def test_the_artifacts_scheduler_collapses_beyond_its_capacity_and_neustream_does_not():
    """Round robin and `carry` at 0.7 workflows/s on 1:2:1, its tables and trace."""
    tables, tasks = read_tables(REFERENCE / "agents_tables.json"), read_trace(REFERENCE / "agents_trace.json")
    stages = {}
    for node in PLOT.nodes:
        table = tables["llava" if node.name == "look" else "codellama" if node.kind == "llm" else "execute"]
        if node.kind == "tool":
            stages[node.name] = tool_stage(node, table, EXECUTE_SECONDS)
        else:
            typical = TYPICAL[node.name]
            stages[node.name] = llm_stage(node, table, 1.8, typical_size=typical.size, typical_units=typical.units)
    pools = {
        name: PoolPlan(replicas, Device(kv_blocks=blocks, max_num_batched_tokens=4096))
        for name, replicas, blocks in (("write_code", 1, 1055), ("look", 2, 962), ("revise_code", 1, 1055))
    } | {"execute": PoolPlan(1, seats=40)}
    good = {}
    for name in ("fcfs", "neustream"):
        make = partial(make_policy, name)
        load = PlotTrace(tasks, 0.7, 1.0)
        good[name] = simulate_workflows(
            PLOT, stages, pools, lambda cost, make=make: make(cost.table), "carry", load, binding="round_robin"
        ).good
    assert 55 <= good["fcfs"] <= 75
    assert 225 <= good["neustream"] <= 260
