"""Simulated against logged goodput. Nothing in the simulator is fitted to these logs; they are a check.

Where the folder of logs is not there, these tests are skipped: it is no part of the project.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from neusim.sim import PipelineWorkload, default_device, simulate
from neusim.validate import main
from neusim.validating import reference
from neusim.validating.reference import Comparison, compare, errors, read_results, with_own_speed
from neustream import LatencyTable, TableError, save_table
from neustream.latency import BatchLatency
from neustream.slo import ScaleSlo
from neustream.tables import find_table, table_path

REFERENCE = Path(os.environ.get("NEUSTREAM_REFERENCE", Path(__file__).resolve().parents[3] / "shared" / "reference"))
needs_reference = pytest.mark.skipif(
    not (REFERENCE / "results.json").exists(), reason="no folder of logged results (NEUSTREAM_REFERENCE)"
)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], list[Comparison]]:
    wanted = {(model, policy) for model in ("dit-s-2-256", "sd15-256") for policy in ("neustream", "clockwork")}
    grouped: dict[tuple[str, str], list[Comparison]] = {key: [] for key in wanted}
    for row in compare(REFERENCE, processes=os.cpu_count() or 1, keep=lambda key: key[1:3] in wanted):
        grouped[row.key[1], row.key[2]].append(row)
    return grouped


@needs_reference
@pytest.mark.parametrize("model", ["dit-s-2-256", "sd15-256"])
def test_neustream_is_within_ten_requests_in_the_median_and_25_in_nine_of_ten(rows, model):
    """The 90th percentile leaves out settings of which two runs were logged that differ by more than 50."""
    figures = errors(rows[model, "neustream"])
    assert figures["all_runs"] >= 20
    assert figures["all_median"] <= 10
    assert figures["agreeing_p90"] <= 25


@needs_reference
@pytest.mark.parametrize("model", ["dit-s-2-256", "sd15-256"])
def test_neustream_is_within_eight_requests_in_the_median_where_the_logs_agree(rows, model):
    assert errors(rows[model, "neustream"])["agreeing_median"] <= 8


@needs_reference
def test_the_logs_of_stable_diffusion_lack_what_was_in_flight_when_the_last_request_came(rows):
    """Where all 500 are served in time the two counts are the same, or one apart."""
    lax = [row for row in rows["sd15-256", "neustream"] if row.simulated + row.in_flight == 500]
    assert len(lax) >= 20
    assert all(row.error <= 1 and row.in_flight >= 3 for row in lax)
    assert all(row.in_flight == 0 for row in rows["sd15-256", "clockwork"] + rows["dit-s-2-256", "neustream"])


@needs_reference
@pytest.mark.parametrize(
    ("slowness", "scale", "rate"), [(1.0, 1.2, 2.0), (1.05, 1.2, 2.0), (1.05, 1.5, 2.0), (1.1, 2.0, 2.0)]
)
def test_slack_meets_as_many_as_neustream_where_steps_are_slower_than_the_table(slowness, scale, rate):
    table = find_table(REFERENCE / "tables", "rtx4090", "dit-s-2-256")
    workload = PipelineWorkload(rate, 2.0, ScaleSlo(scale), (200, 250))
    device = default_device(table, slowness=slowness)
    good = {policy: simulate(table, policy, workload, device).good for policy in ("neustream", "slack")}
    assert good["slack"] >= good["neustream"]


@needs_reference
def test_clockwork_on_stable_diffusion_is_within_fifteen_requests_in_the_median(rows):
    figures = errors(rows["sd15-256", "clockwork"])
    assert figures["all_runs"] >= 20
    assert figures["all_median"] <= 15


@needs_reference
def test_at_the_speed_of_its_logged_runs_dit_is_as_near_as_stable_diffusion(rows):
    """The speed was read off runs of clockwork; neustream's had no part in it."""
    clockwork = with_own_speed(rows["dit-s-2-256", "clockwork"])
    neustream = with_own_speed(rows["dit-s-2-256", "neustream"])
    assert min(len(clockwork), len(neustream)) >= 20
    assert errors(clockwork)["all_median"] <= 30
    assert errors(neustream)["all_median"] <= 8
    assert errors(neustream)["agreeing_p90"] <= 25


@needs_reference
def test_neustream_serves_more_than_clockwork_wherever_both_were_logged(rows):
    simulated = {row.key: row.simulated for row in rows["sd15-256", "neustream"]}
    for row in rows["sd15-256", "clockwork"]:
        other = (*row.key[:2], "neustream", *row.key[3:])
        if other in simulated:
            assert simulated[other] > row.simulated


def folder(tmp_path: Path, goods: list[int], scale: float = 9.0) -> Path:
    table = LatencyTable("sd-hand", "gpu", {"denoise": BatchLatency((1, 2), (0.01, 0.012))})
    save_table(table, table_path(tmp_path / "tables", "gpu", "sd-hand"))
    row = {"device": "gpu", "model": "sd-hand", "system": "neustream", "rate": 0.5, "cv": 1.0, "slo": scale}
    (tmp_path / "results.json").write_text(json.dumps([row | {"good": good} for good in goods]))
    return tmp_path


def test_every_logged_run_is_compared_and_contradictions_are_told_apart(tmp_path, capsys):
    """At this load everybody is served: 500."""
    compared = compare(folder(tmp_path, [500, 440, 498]))
    assert [(row.logged, row.simulated, row.error, row.is_contradicted) for row in compared] == [
        (500, 500, 0, True),
        (440, 500, 60, True),
        (498, 500, 2, True),
    ]
    assert errors(compared) == {"all_runs": 3, "all_median": 2.0, "all_p90": pytest.approx(48.4), "agreeing_runs": 0}
    assert main(["--reference", str(folder(tmp_path, [500, 490]))]) == 0
    out = capsys.readouterr().out
    assert "sd-hand        neustream    0.5    1     9    490       500    +10\n" in out
    assert "2 runs  median 5.0 (5.0)  p90 9.0 (9.0)" in out


def test_where_the_speed_of_the_logged_runs_is_known_both_figures_are_given(tmp_path, capsys, monkeypatch):
    """Steps twice as long as the table says: under a scale of 1.5 everybody is served late."""
    monkeypatch.setattr(reference, "OWN_SPEED", {("gpu", "sd-hand"): 2.0})
    logs = folder(tmp_path, [480, 300], scale=1.5)
    assert main(["--reference", str(logs)]) == 0
    own = capsys.readouterr().out
    assert [(row.simulated, row.at_own_speed) for row in compare(logs)] == [(497, 0), (497, 0)]
    assert [row.simulated for row in with_own_speed(compare(logs))] == [0, 0]
    assert "  error  at own speed  error\n" in own
    assert "0.5    1   1.5    480       497    +17             0   -480  repeats disagree\n" in own
    assert "2 runs  median 107.0  p90 179.0   at own speed  median 390.0  p90 462.0\n" in own
    assert main(["--reference", str(logs), "--slowness", "2"]) == 0
    chosen = capsys.readouterr().out
    assert "own speed" not in chosen
    assert "0.5    1   1.5    480         0   -480  repeats disagree\n" in chosen


def test_a_damaged_folder_is_named(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"results\.json: cannot be read"):
        read_results(tmp_path / "nothing")
    (tmp_path / "results.json").write_text('[{"device": "gpu"}]')
    with pytest.raises(ValueError, match=r"results\.json: KeyError 'model'"):
        read_results(tmp_path)
    logs = folder(tmp_path, [500])
    (logs / "tables" / "gpu" / "sd-hand.json").unlink()
    with pytest.raises(TableError, match="no table of sd-hand on gpu"):
        compare(logs)
    with pytest.raises(SystemExit) as ended:
        main(["--reference", str(tmp_path / "nothing")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
