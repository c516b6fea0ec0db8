"""Reads what a run left in its folder: `summary.json`, `requests.jsonl`, `steps.jsonl`.

The one reader, for comparisons, figures and replays. It takes runs of every version that wrote such folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from neustream.cli.arguments import BadInput
from neustream.cli.paths import RUNS
from neustream.files import read_json, read_text
from neustream.records import RequestRecord, StepRecord

Line = TypeVar("Line")

SCALES = ("pslo", "dslo", "slo_scale")
OLD_IDS = "running_requests_id_list"
"""What old runs of pipelines call the ids of a step's requests."""


@dataclass(frozen=True, slots=True)
class _SummaryForm:
    """What every reader needs of a summary, in the form in which it must be there."""

    model: str
    policy: str
    settings: list[dict[str, Any]]
    axes: list[str] = field(default_factory=list)
    device: str | None = None
    table: str | None = None
    table_device: str | None = None
    complete: bool = True


@dataclass(frozen=True, slots=True)
class _StepForm:
    """A line of `steps.jsonl`, as far as every version and every driver wrote it."""

    time: float
    module: str
    seconds: float
    request_ids: Annotated[tuple[str, ...], Field(validation_alias=AliasChoices("request_ids", OLD_IDS))]
    schedule_seconds: float | None = None
    decision_seconds: float | None = None
    """Not in old runs of pipelines, where all of the scheduling was the policy's."""
    predicted_seconds: float | None = None
    num_waiting: int = 0
    rejected: tuple[str, ...] = ()

    def record(self) -> StepRecord:
        scheduling = self.schedule_seconds or 0.0
        return StepRecord(
            self.time,
            self.module,
            self.request_ids,
            self.seconds,
            scheduling if self.decision_seconds is None else self.decision_seconds,
            scheduling,
            self.predicted_seconds,
            self.num_waiting,
            self.rejected,
        )


_SUMMARY: TypeAdapter[_SummaryForm] = TypeAdapter(_SummaryForm)
_REQUEST: TypeAdapter[RequestRecord] = TypeAdapter(RequestRecord)
_STEP: TypeAdapter[_StepForm] = TypeAdapter(_StepForm)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run that has been measured, its summary read and checked."""

    path: Path
    summary: Mapping[str, Any]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Axes and figures of each setting."""
        settings: list[dict[str, Any]] = self.summary["settings"]
        return settings

    @property
    def axes(self) -> list[str]:
        """What was swept: names of figures of each setting."""
        return list(self.summary.get("axes", ()))

    @property
    def is_complete(self) -> bool:
        """Whether every setting was measured to its end."""
        return bool(self.summary.get("complete", True))

    def need(self, *keys: str) -> None:
        """Raises BadInput naming the keys that the summary lacks, or that it has no measured setting."""
        missing = [key for key in keys if key not in self.summary]
        if missing or not self.settings:
            what = f"{', '.join(missing)} missing" if missing else "no setting was measured"
            raise BadInput(f"{self.path / 'summary.json'}: {what}")

    def requests(self) -> list[list[RequestRecord]]:
        """The requests of each setting, in the order in which they ended. Raises BadInput naming a damaged line."""
        return _by_setting(self.path / "requests.jsonl", _REQUEST.validate_python, len(self.settings))

    def steps(self) -> list[list[StepRecord]]:
        """The steps of each setting, times since its origin; empty where the run kept none.

        Raises BadInput naming a damaged line.
        """
        return read_steps(self.path / "steps.jsonl", len(self.settings))


def find_run(text: str | Path) -> Path:
    """The folder of a run, given by its path or by its name in the repository's `runs/`."""
    path = Path(text)
    return path if path.is_dir() else RUNS / path


def open_run(text: str | Path) -> RunFolder:
    """Read and check the summary of a run, given by its folder or its name in `runs/`. Raises BadInput."""
    folder = find_run(text)
    path = folder / "summary.json"
    if not path.exists():
        raise BadInput(f"{text}: no run ({path} does not exist)")
    summary = read_json(path, BadInput)
    try:
        _SUMMARY.validate_python(summary)
    except ValidationError as error:
        raise BadInput(f"{path}: {first_error(error)}") from error
    return RunFolder(folder, summary)


def slo_of(summary: Mapping[str, Any], setting: Mapping[str, Any]) -> dict[str, float]:
    """The SLO of a setting's requests in the outside form that `parse_slo` reads.

    A summary says `{"kind": "absolute", "ttft_ms": …}` or `{"kind": "scale"}`; older ones the absolute values alone,
    or a sentence for scales.
    """
    slo = summary.get("slo")
    if isinstance(slo, Mapping) and slo.get("kind") != "scale":
        return {key: value for key, value in slo.items() if key != "kind"}
    return {key: setting[key] for key in SCALES if key in setting}


def _step(data: Any) -> StepRecord:
    return _STEP.validate_python(data).record()


def read_steps(path: Path, num_settings: int) -> list[list[StepRecord]]:
    """The lines of a `steps.jsonl` by setting; empty where there is no such file. Raises BadInput."""
    return _by_setting(path, _step, num_settings) if path.is_file() else [[] for _ in range(num_settings)]


def _by_setting(path: Path, read: Callable[[Any], Line], num_settings: int) -> list[list[Line]]:
    groups: list[list[Line]] = [[] for _ in range(num_settings)]
    for number, line in enumerate(read_text(path, BadInput).splitlines(), start=1):
        try:
            data = json.loads(line)
            setting = _setting(data, num_settings)
            groups[setting].append(read(data))
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}:{number}: is not JSON ({error.msg} at column {error.colno})") from error
        except ValidationError as error:
            raise BadInput(f"{path}:{number}: {first_error(error)}") from error
        except ValueError as error:
            raise BadInput(f"{path}:{number}: {error}") from error
    return groups


def _setting(data: Any, num_settings: int) -> int:
    """Which setting a line belongs to. Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, got {type(data).__name__}")
    if "setting" not in data:
        raise ValueError("setting is missing")
    setting = data["setting"]
    if type(setting) is not int or not 0 <= setting < num_settings:
        raise ValueError(f"setting is {setting!r}, and the summary has {num_settings}, counted from 0")
    return setting


def first_error(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, on one line: field, what it is, what it should be."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{where} is missing"
    if not where:
        return f"expected an object, got {type(first['input']).__name__}"
    return f"{where} is {first['input']!r:.60}: {first['msg'][:1].lower()}{first['msg'][1:]}"
