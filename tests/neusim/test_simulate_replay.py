"""A real run's folder, simulated: the same requests, the same policy, the run's own table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neusim import validate
from neusim.sim import Device, LlmWorkload, PipelineWorkload, Workload, simulate
from neusim.sim.device import Slowness
from neusim.sim.workload import TraceWorkload
from neusim.validating.replay import StepTimes, read_run, read_steps
from neustream import LatencyTable, Request, parse_slo, save_table
from neustream.latency import BatchLatency, ContextLatency, TokensLatency
from neustream.records import JsonLines, RequestRecord
from neustream.slo import ScaleSlo
from neustream.tables import table_path
from neustream.workload.traces import TracedRequest

LLM = LatencyTable(
    "opt-hand", "box", {"prefill": TokensLatency((0.02, 0.001, 0.0)), "decode": ContextLatency((0.03, 1e-5))}
)
LOOP = LatencyTable(
    "dit-hand", "box", {"denoise": BatchLatency((1, 2, 4), (0.1, 0.12, 0.16)), "vae": BatchLatency((1, 2), (0.05, 0.1))}
)


def write_run(folder: Path, table: LatencyTable, policy: str, axes: dict[str, float], **summary: Any) -> list[int]:
    """A run whose "real" executor is a simulated one, so that its replay must give the same; returns the goods."""
    save_table(table, table_path(folder.parent / "tables", table.device, table.model))
    slo = parse_slo({key: value for key, value in axes.items() if key not in ("rate", "cv")})
    slo = parse_slo(summary["slo"]) if isinstance(summary.get("slo"), dict) else slo
    settings = []
    with JsonLines(folder / "requests.jsonl") as lines:
        for index, seed in enumerate((0, 1)):
            workload: Workload = PipelineWorkload(axes["rate"], axes["cv"], slo, (3, 7), 40, seed)
            if table is LLM:
                workload = LlmWorkload(axes["rate"], axes["cv"], slo, 8, 40, seed)

            def keep(request: Request, index: int = index) -> None:
                lines.write({"setting": index, **RequestRecord.of(request, origin=0.0).to_json()})

            name = "fcfs" if policy == "vllm" else policy
            result = simulate(table, name, workload, Device(), on_end=keep)
            settings.append({**axes, **result.summary, "seed": seed})
    head = {"model": table.model, "policy": policy, "table_device": "box", "axes": list(axes), "complete": True}
    (folder / "summary.json").write_text(json.dumps({**head, **summary, "settings": settings}))
    return [setting["good"] for setting in settings]


@pytest.mark.parametrize(
    ("table", "policy", "axes", "summary"),
    [
        (LOOP, "neustream", {"rate": 3.0, "cv": 2.0, "slo_scale": 2.5}, {}),
        (LOOP, "clockwork", {"rate": 2.0, "cv": 1.0, "slo_scale": 3.0}, {}),
        (LLM, "neustream", {"rate": 6.0, "cv": 1.0, "pslo": 3.0, "dslo": 1.3}, {}),
        (LLM, "vllm", {"rate": 6.0, "cv": 1.0, "pslo": 3.0, "dslo": 1.3}, {}),
        (LLM, "fcfs", {"rate": 6.0, "cv": 1.0}, {"slo": {"ttft_ms": 400.0, "tpot_ms": 45.0}}),
    ],
)
def test_a_replay_of_what_the_simulator_did_gives_the_same(tmp_path, table, policy, axes, summary):
    axes_of_slo = axes if "slo_scale" in axes or "pslo" in axes else {**axes, **summary["slo"]}
    goods = write_run(tmp_path / "run", table, policy, axes_of_slo, **summary)
    run = read_run(tmp_path / "run", tmp_path / "tables")
    assert [run.replay(index).good for index in range(2)] == goods
    assert 0 < sum(goods) < 80


def test_outputs_that_ended_early_end_there_in_the_replay_and_no_policy_is_told(tmp_path):
    save_table(LLM, table_path(tmp_path / "tables", "box", LLM.model))
    axes = {"rate": 6.0, "cv": 1.0, "pslo": 3.0, "dslo": 1.3}
    rows = [TracedRequest(None, 20 + 7 * i % 90, 2 + 5 * i % 30) for i in range(40)]
    workload = TraceWorkload(rows, ScaleSlo(3.0, 1.3), 200, 6.0, 1.0)
    records: list[Request] = []
    result = simulate(LLM, "fcfs", workload, Device(), on_end=records.append)
    with JsonLines(tmp_path / "run" / "requests.jsonl") as lines:
        for request in records:
            lines.write({"setting": 0, **RequestRecord.of(request, origin=0.0).to_json()})
    head = {"model": LLM.model, "policy": "fcfs", "table_device": "box", "axes": list(axes), "complete": True}
    summary = {**head, "settings": [{**axes, **result.summary, "seed": 0}]}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    replay = read_run(tmp_path / "run", tmp_path / "tables").replay(0)
    assert replay.summary["units"] == result.summary["units"] == sum(row.output for row in rows)
    assert (replay.good, replay.summary["seconds"]) == (result.good, result.summary["seconds"])


def test_both_goodputs_and_the_error_are_printed_for_each_setting(tmp_path, capsys):
    goods = write_run(tmp_path / "run", LOOP, "neustream", {"rate": 3.0, "cv": 2.0, "slo_scale": 2.5})
    path = tmp_path / "run" / "summary.json"
    summary = json.loads(path.read_text())
    summary["settings"][0]["request_goodput"] *= 0.5
    path.write_text(json.dumps(summary))
    assert validate.main(["--run", str(tmp_path / "run"), "--tables", str(tmp_path / "tables")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert " ".join(lines[0]).endswith("neustream, measured table of dit-hand on box")
    assert lines[2][:6] == ["rate", "3", "cv", "2", "slo_scale", "2.5"]
    assert lines[2][6] == "request_goodput"
    assert [lines[2][9], lines[2][11]] == ["+100.0%", "+100.0%"]
    assert lines[4] == ["good", str(goods[0]), str(goods[0]), "+0.0%", str(goods[0]), "+0.0%"]
    assert " ".join(lines[5]) == "its steps took, × the table: not known; 0.00 ms beside each"
    assert lines[8] == ["good", str(goods[1]), str(goods[1]), "+0.0%", str(goods[1]), "+0.0%"]


def test_how_a_runs_steps_differ_from_its_table_is_measured(tmp_path):
    """Gaps 0.01, 0.02, 0.02 and 0.9 (waiting for arrivals), of which the median is 0.02; deciding 0.004 on average."""
    starts = [0.0, 0.11, 0.23, 0.35, 1.35]
    with JsonLines(tmp_path / "steps.jsonl") as lines:
        for time, deciding in zip(starts, (0.002, 0.006, 0.004, 0.004, 0.004), strict=True):
            spent = {"schedule_seconds": deciding, "decision_seconds": deciding / 2, "predicted_seconds": 0.048}
            lines.write(
                {"setting": 0, "module": "denoise", "request_ids": ["a"], "time": time, "seconds": 0.1, **spent}
            )
        last = {"schedule_seconds": 0.004, "decision_seconds": None, "predicted_seconds": None}
        lines.write({"setting": 1, "module": "vae", "request_ids": ["a"], "time": 0.0, "seconds": 0.1, **last})
    times, other = read_steps(tmp_path / "steps.jsonl", LOOP, 2)
    assert times.overhead == pytest.approx(0.024)
    assert times.drift == {"denoise": pytest.approx(2.0)}
    assert other == StepTimes(overhead=0.004)
    assert read_steps(tmp_path / "steps.jsonl", LLM, 2)[0].overhead == pytest.approx(0.02 + 0.002)
    assert read_steps(tmp_path / "nothing.jsonl", LOOP, 1) == (StepTimes(),)


def test_a_runs_own_speed_is_known_for_each_half_second(tmp_path):
    """Steps of 0.1 s by the table, 0.1 s each at first and 0.3 s each from 0.5 s on."""
    with JsonLines(tmp_path / "steps.jsonl") as lines:
        for time, seconds in ((0.0, 0.1), (0.2, 0.1), (0.5, 0.3), (0.9, 0.3), (1.6, 0.3)):
            spent = {"schedule_seconds": 0.0, "predicted_seconds": 0.1}
            lines.write(
                {"setting": 0, "module": "denoise", "request_ids": ["a"], "time": time, "seconds": seconds, **spent}
            )
    (times,) = read_steps(tmp_path / "steps.jsonl", LOOP, 1)
    assert times.slowness is not None
    factors = [times.slowness.at(now) for now in (0.3, 0.5, 0.99, 1.2, 1.7)]
    assert factors == pytest.approx([1.0, 3.0, 3.0, 2.2, 3.0])  # 2.2 overall, where no step ran


def test_a_damaged_record_of_a_step_is_named(tmp_path):
    good = json.dumps({"setting": 0, "module": "vae", "request_ids": ["a"], "time": 0.0, "seconds": 0.1})
    (tmp_path / "steps.jsonl").write_text(f'{good}\n{{"setting": 3}}\n')
    with pytest.raises(ValueError, match=r"steps\.jsonl:2: setting is 3, and the summary has 1"):
        read_steps(tmp_path / "steps.jsonl", LOOP, 1)


@pytest.mark.parametrize(("table", "axes"), [(LOOP, {"slo_scale": 2.5}), (LLM, {"pslo": 3.0, "dslo": 1.3})])
def test_at_its_own_speed_a_replay_has_slower_steps_and_the_same_deadlines(tmp_path, table, axes):
    goods = write_run(tmp_path / "run", table, "neustream", {"rate": 3.0, "cv": 2.0, **axes})
    run = read_run(tmp_path / "run", tmp_path / "tables")
    slow = replace(run, steps=(StepTimes(slowness=Slowness(1.0, {}, 1.5)),) * 2)
    assert slow.replay(0).good == goods[0]
    assert 0 < slow.replay(0, at_own_speed=True).good < goods[0]


def test_another_table_than_the_runs_own_is_found_out(tmp_path):
    write_run(tmp_path / "run", LOOP, "neustream", {"rate": 3.0, "cv": 2.0, "slo_scale": 2.5})
    slower = LatencyTable("dit-hand", "box", {"denoise": BatchLatency((1, 2), (0.2, 0.3)), "vae": LOOP["vae"]})
    save_table(slower, table_path(tmp_path / "tables", "box", "dit-hand"))
    run = read_run(tmp_path / "run", tmp_path / "tables")
    with pytest.raises(ValueError, match="not the table of that run"):
        run.replay(0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", "{", r"summary\.json: is not JSON"),
        ("summary.json", "[]", r"summary\.json: expected an object, got list"),
        ("summary.json", '{"model": "m"}', r"summary\.json: policy is missing"),
        ("requests.jsonl", '{"setting": 9}\n', r"requests\.jsonl:1: setting is 9, and the summary has 2"),
        ("requests.jsonl", '{"setting": 0}\n', r"requests\.jsonl:1: id is missing"),
        ("requests.jsonl", "nonsense\n", r"requests\.jsonl:1: is not JSON"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(tmp_path, capsys, name, text, message):
    write_run(tmp_path / "run", LOOP, "neustream", {"rate": 3.0, "cv": 2.0, "slo_scale": 2.5})
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path / "run", tmp_path / "tables")
    with pytest.raises(SystemExit) as ended:
        validate.main(["--run", str(tmp_path / "run"), "--tables", str(tmp_path / "tables")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupted_run_and_an_unknown_policy_are_refused(tmp_path, capsys):
    write_run(tmp_path / "run", LOOP, "neustream", {"rate": 3.0, "cv": 2.0, "slo_scale": 2.5}, complete=False)
    with pytest.raises(ValueError, match="interrupted"):
        read_run(tmp_path / "run", tmp_path / "tables")
    with pytest.raises(SystemExit) as ended:
        validate.main(["--policy", "nope"])
    assert ended.value.code == 2
    assert "unknown policy 'nope'" in capsys.readouterr().err
