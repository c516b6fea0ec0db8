"""What hears of a setting's steps and ends: the sums over its steps, and its lines in the run's folder."""

from __future__ import annotations

from typing import Any

from exp.harness.folder import RunWriter
from neustream.records import RequestRecord, StepRecord
from neustream.request import Request


class StepTotals:
    """Sums over the steps of a setting. An observer."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.schedule_seconds = 0.0
        self.decision_seconds = 0.0
        self.batched = 0
        self.predicted = 0
        self.predicted_seconds = 0.0
        self.measured_seconds = 0.0
        self.error = 0.0

    def on_step(self, record: StepRecord) -> None:
        """Count one step."""
        self.count += 1
        self.seconds += record.seconds
        self.schedule_seconds += record.schedule_seconds
        self.decision_seconds += record.decision_seconds
        self.batched += record.batch_size
        predicted = record.predicted_seconds
        if predicted is not None and record.seconds > 0:
            self.predicted += 1
            self.predicted_seconds += predicted
            self.measured_seconds += record.seconds
            self.error += abs(predicted - record.seconds) / record.seconds

    def on_end(self, request: Request) -> None:
        """Requests are not its business."""

    def summary(self) -> dict[str, Any]:
        """`decision_share` (time deciding; `schedule_share` is its old name) and its company.

        `scheduler_share` takes in what an engine's scheduler does besides; `prediction_error` is the mean of
        |predicted − measured| / measured, `slowdown` is measured / predicted over all steps.
        """
        deciding = self.decision_seconds / self.seconds if self.seconds else None
        return {
            "steps": self.count,
            "step_seconds": self.seconds,
            "decision_share": deciding,
            "schedule_share": deciding,
            "scheduler_share": self.schedule_seconds / self.seconds if self.seconds else None,
            "mean_batch": self.batched / self.count if self.count else None,
            "prediction_error": self.error / self.predicted if self.predicted else None,
            "slowdown": self.measured_seconds / self.predicted_seconds if self.predicted else None,
        }


class Recorder:
    """Writes a setting's lines of `steps.jsonl` and `requests.jsonl`, times in seconds since `origin`. An observer."""

    def __init__(self, folder: RunWriter, setting: int) -> None:
        self.folder = folder
        self.setting = setting
        self.origin = 0.0
        """The driver's clock at the start of the setting."""

    def on_step(self, record: StepRecord) -> None:
        """Write the step's line: the columns that all drivers have, then those of this one."""
        self.folder.steps.write({"setting": self.setting, **record.to_json(origin=self.origin)})

    def on_end(self, request: Request) -> None:
        """Write the request's line."""
        record = RequestRecord.of(request, origin=self.origin)
        self.folder.requests.write({"setting": self.setting, **record.to_json()})
