"""The reader of run folders: old and new ones are understood, damaged ones are refused by file and line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exp.figures.recorded import read_studies
from neusim.validating import run_folder
from neusim.validating.run_folder import open_run, slo_of
from neustream.cli.arguments import BadInput
from neustream.files import read_json, write_atomically
from neustream.records import RequestRecord, StepRecord

OLD_REQUEST: dict[str, Any] = {
    "setting": 0, "id": "0-1", "arrival": 0.5, "size": 12, "visits": {"prefill": 1, "decode": 3}, "outcome": "met",
    "reason": None, "units": 4, "units_on_time": 4, "first_unit": 0.6, "last_unit": 0.9, "end": 0.9,
    "first_deadline": 1.0, "last_deadline": None,
}  # fmt: skip
"""As runs were written before requests had classes."""
OLD_IMAGE_STEP: dict[str, Any] = {
    "setting": 0, "time": 0.1, "module": "denoise", "batch_size": 2, "high_priority_count": 2,
    "low_priority_count": 0, "queue_size_before_schedule": 3, "batch_size_after_schedule": 2,
    "running_requests_id_list": ["a", "b"], "rest_time": [0.1, 0.2], "rejected": [], "seconds": 0.02,
    "schedule_seconds": 0.001, "predicted_seconds": 0.019,
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "schema": 1,
    "kind": "llm",
    "model": "opt-125m",
    "policy": "neustream",
    "device": "desk",
    "slo": "pslo and dslo of each setting",
    "axes": ["rate", "cv"],
    "settings": [{"rate": 2.0, "cv": 1.0, "seconds": 1.0, "requests": 1, "request_goodput": 1.0, "token_goodput": 4.0,
                  "slo_attainment": 1.0}],
}  # fmt: skip


def write(folder: Path, requests: Sequence[Any] = (OLD_REQUEST,), steps: Sequence[Any] = (OLD_IMAGE_STEP,)) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    for name, rows in (("requests", requests), ("steps", steps)):
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def test_a_run_of_an_older_version_is_read(tmp_path: Path) -> None:
    run = open_run(write(tmp_path / "run"))
    ((request,),) = run.requests()
    assert isinstance(request, RequestRecord)
    assert (request.id, request.visits, request.last_deadline) == ("0-1", {"prefill": 1, "decode": 3}, None)
    assert (request.demoted, request.slo_class) == (False, "")
    ((step,),) = run.steps()
    assert isinstance(step, StepRecord)
    assert (step.kind, step.request_ids, step.schedule_seconds, step.decision_seconds) == (
        "denoise", ("a", "b"), 0.001, 0.001,
    )  # fmt: skip
    assert run.is_complete


def test_what_the_records_write_is_what_is_read(tmp_path: Path) -> None:
    record = StepRecord(5.25, "decode", ("a", "b"), 0.5, 0.125, 0.25, 0.375, 1, ("c",), extra={"tokens": 2})
    step = {"setting": 0, **record.to_json(origin=5.0)}
    ((read,),) = open_run(write(tmp_path / "run", steps=[step])).steps()
    assert read == replace(record, time=0.25, extra={})


def test_a_name_is_looked_up_in_the_repositorys_runs_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "RUNS", tmp_path / "runs")
    write(tmp_path / "runs" / "mine", steps=[{**OLD_IMAGE_STEP, "module": "decode"}])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_run("mine").path == tmp_path / "runs" / "mine"
    (study,) = read_studies(["mine"])
    assert [batches.policy for batches in study.batches] == ["neustream"]


@pytest.mark.parametrize(
    ("slo", "expected"),
    [
        ("pslo and dslo of each setting", {"pslo": 3.0, "dslo": 1.5}),
        (None, {"pslo": 3.0, "dslo": 1.5}),
        ({"kind": "scale"}, {"pslo": 3.0, "dslo": 1.5}),
        ({"ttft_ms": 200.0}, {"ttft_ms": 200.0}),
        ({"kind": "absolute", "ttft_ms": 200.0, "tpot_ms": 50.0}, {"ttft_ms": 200.0, "tpot_ms": 50.0}),
    ],
)
def test_an_slo_of_either_form_is_understood(slo: Any, expected: dict[str, float]) -> None:
    summary = {"slo": slo} if slo is not None else {}
    assert slo_of(summary, {"rate": 1.0, "pslo": 3.0, "dslo": 1.5}) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"requests\.jsonl:2: is not JSON \(Expecting property name"),
        ("[]", r"requests\.jsonl:2: expected an object, got list"),
        ({"id": "x"}, r"requests\.jsonl:2: setting is missing"),
        ({**OLD_REQUEST, "setting": 1}, r"requests\.jsonl:2: setting is 1, and the summary has 1"),
        ({**OLD_REQUEST, "setting": True}, r"requests\.jsonl:2: setting is True"),
        ({**OLD_REQUEST, "size": "many"}, r"requests\.jsonl:2: size is 'many': input should be a valid integer"),
        ({**OLD_REQUEST, "visits": {"denoise": None}}, r"requests\.jsonl:2: visits\.denoise is None"),
    ],
)
def test_a_damaged_line_is_named(line: Any, message: str, tmp_path: Path) -> None:
    run = open_run(write(tmp_path / "run", requests=[OLD_REQUEST, line]))
    with pytest.raises(BadInput, match=message) as caught:
        run.requests()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": "m"}', "policy is missing"),
        (json.dumps(SUMMARY | {"settings": 3}), "settings is 3: input should be a valid list"),
        (json.dumps(SUMMARY | {"settings": []}), "no setting was measured"),
        (json.dumps({key: SUMMARY[key] for key in SUMMARY if key != "device"}), "device missing"),
    ],
)
def test_a_damaged_summary_is_named(text: str, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / "summary.json").write_text(text)
    with pytest.raises(BadInput, match=rf"summary\.json: {message}"):
        open_run(folder).need("device")


def test_a_file_is_written_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "data.json"
    write_atomically(path, "[1]")
    assert read_json(path) == [1]

    def fail(self: Path, *_: object, **__: object) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "[2]")
    assert read_json(path) == [1]
    assert [file.name for file in path.parent.iterdir()] == ["data.json"]


def test_json_that_cannot_be_read_is_one_line_of_the_callers_kind(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.json: cannot be read \(No such file or directory\)"):
        read_json(tmp_path / "none.json", BadInput)
    (tmp_path / "half.json").write_text("[1,")
    with pytest.raises(BadInput, match=r"half\.json: is not JSON"):
        read_json(tmp_path / "half.json", BadInput)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"binary\.json: is not UTF-8 text"):
        read_json(tmp_path / "binary.json", BadInput)
