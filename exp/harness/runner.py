"""Runs the settings of an experiment one after the other, and writes and prints what came of them."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from exp.harness.client import Client, ClientDied, Job
from exp.harness.folder import RunFolder
from exp.harness.progress import Progress
from exp.harness.report import Column, best_of_repeats, format_table, log_line
from exp.harness.serving import Interrupt, Server, serve
from exp.harness.settings import Setting
from neustream.cli.disturbance import waited_seconds
from neustream.goodput import GoodputCounter
from neustream.records import RequestRecord
from neustream.request import Request

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

DISTURBED = 0.15
"""From this `waited_share` on, the user is told. An idle machine shows 0.03 to 0.07."""

SLOW = 1.15
"""From this `slowdown` on, the user is told."""

OnStep = Callable[[dict[str, Any]], None]


class Bench(Protocol):
    """What differs from one kind of model to the next. The model is loaded once, for all settings."""

    def jobs(self, setting: Setting) -> list[Job]:
        """The requests of a setting, by rising offset; the same for every policy."""
        ...

    def server(self, setting: Setting, on_step: OnStep) -> Server:
        """A server for one setting, idle. It calls `on_step` with a record after each step.

        A record holds `time` (wall clock at its start), `module`, `batch_size`, `seconds`,
        `schedule_seconds` (both from there on), `predicted_seconds` (or None), `decision_seconds` (the policy's part
        of the scheduling, where it is not all of it), and whatever else is worth keeping.
        """
        ...


class StepTotals:
    """Sums over the steps of a setting."""

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

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one step's record."""
        self.count += 1
        self.seconds += record["seconds"]
        self.schedule_seconds += record["schedule_seconds"]
        self.decision_seconds += record.get("decision_seconds", record["schedule_seconds"])
        self.batched += record["batch_size"]
        predicted = record.get("predicted_seconds")
        if predicted is not None and record["seconds"] > 0:
            self.predicted += 1
            self.predicted_seconds += predicted
            self.measured_seconds += record["seconds"]
            self.error += abs(predicted - record["seconds"]) / record["seconds"]

    def summary(self) -> dict[str, Any]:
        """`schedule_share` (time deciding) and its company.

        `scheduler_share` takes in what an engine's scheduler does besides; `prediction_error` is the mean of
        |predicted − measured| / measured, `slowdown` is measured / predicted over all steps.
        """
        return {
            "steps": self.count,
            "step_seconds": self.seconds,
            "schedule_share": self.decision_seconds / self.seconds if self.seconds else None,
            "scheduler_share": self.schedule_seconds / self.seconds if self.seconds else None,
            "mean_batch": self.batched / self.count if self.count else None,
            "prediction_error": self.error / self.predicted if self.predicted else None,
            "slowdown": self.measured_seconds / self.predicted_seconds if self.predicted else None,
        }


def measure(
    bench: Bench, setting: Setting, num_settings: int, folder: RunFolder, interrupt: Interrupt, row: dict[str, Any]
) -> None:
    """Serve one setting and fill in `row`, as far as it came also when an error is raised."""
    counter = GoodputCounter()
    totals = StepTotals()
    jobs = bench.jobs(setting)
    offsets = {job.request_id: job.offset for job in jobs}
    origin = 0.0
    lag = 0.0

    def on_step(record: dict[str, Any]) -> None:
        totals.add(record)
        folder.steps.write({"setting": setting.index, **record, "time": record["time"] - origin})

    def on_end(request: Request) -> None:
        counter.add(request)
        folder.requests.write({"setting": setting.index, **RequestRecord.of(request, origin=origin).to_json()})
        progress.ended(request)

    def on_arrival(request_id: str, arrival: float) -> None:
        nonlocal lag
        lag = max(lag, arrival - origin - offsets[request_id])

    server = bench.server(setting, on_step)
    waited, begun = waited_seconds(), time.monotonic()
    try:
        with Client(jobs) as client, Progress(setting, num_settings, len(jobs)) as progress:
            origin = client.start()
            serve(server, client, on_end, interrupt, on_arrival)
    finally:
        figures = counter.summary()
        row |= figures | totals.summary()
        row |= {"injected": len(jobs), "complete": figures["requests"] == len(jobs) and interrupt.signal is None}
        waited_share = (waited_seconds() - waited) / (time.monotonic() - begun)
        row |= {"client_lag": lag, "waited_share": waited_share}


def run_settings(
    bench: Bench,
    settings: Sequence[Setting],
    folder: RunFolder,
    header: Mapping[str, Any],
    *,
    best_by: str,
    columns: Sequence[Column],
    interrupt: Interrupt | None = None,
) -> int:
    """Measure every setting, write `folder`, print the table; returns the exit code.

    `header` goes into the summary as it is: what was run, on what, with which table; it needs `policy`,
    `model` and `taken_at` ("engine" or "client": where times were taken), and may have `capacity`
    (requests per second). `best_by` is the figure by which the best of a setting's repeats is chosen. An
    error (exit code 1) or Ctrl-C (130) ends the run, and what was measured until then is kept.
    """
    axes = list(settings[0].values)
    summary: dict[str, Any] = {"schema": 1, **header, "axes": axes, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    rows: list[dict[str, Any]] = []
    begun = time.monotonic()
    code = 0
    with interrupt or Interrupt() as stop:
        for setting in settings:
            row: dict[str, Any] = {**setting.values, "repeat": setting.repeat, "seed": setting.seed}
            row["load"] = setting["rate"] / header["capacity"] if header.get("capacity") else None
            try:
                try:
                    measure(bench, setting, len(settings), folder, stop, row)
                finally:
                    if row.get("requests"):
                        rows.append(row)
                    complete = len(rows) == len(settings) and all(row["complete"] for row in rows)
                    summary |= {"seconds": time.monotonic() - begun, "complete": complete, "settings": rows}
                    _write(folder, summary, rows, axes, best_by)
            except KeyboardInterrupt:
                code = stop.exit_code or 130
            except Exception as error:
                code = _report(error, setting, folder)
            code = code or stop.exit_code
            if code:
                break
    if rows:
        print(heading(header))
        print(format_table(rows, columns))
        extent = "everything" if summary["complete"] else "what there is"
        print(f"times taken at the {header['taken_at']}; {extent} is in {folder.path}")
        for note in disturbances(rows):
            print(note)
    return code


def disturbances(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines that say why the figures may not be those of this machine at rest; none if nothing was amiss."""
    notes = []
    waited = max(row["waited_share"] for row in rows)
    if waited > DISTURBED:
        notes.append(f"other work disturbed this run: its threads waited {waited:.2f} s per second for a core")
    slowdown = max(row["slowdown"] or 0.0 for row in rows)
    if slowdown > SLOW:
        notes.append(f"steps took up to {slowdown:.2f} × what the latency table says, and the SLOs are the table's")
    return notes


def heading(header: Mapping[str, Any]) -> str:
    """One line over the table: what ran on what."""
    keys = ("model", "policy", "device", "dtype", "table_origin")
    text = ", ".join(f"{key.replace('_', ' ')} {header[key]}" for key in keys if header.get(key))
    return text + (f", capacity {header['capacity']:.4g} req/s" if header.get("capacity") else "")


def _write(
    folder: RunFolder, summary: dict[str, Any], rows: list[dict[str, Any]], axes: list[str], best_by: str
) -> None:
    folder.flush()
    folder.write_summary(summary)
    fixed = {"policy": summary["policy"], "model": summary["model"]}
    folder.write_lines("step_prediction.log", [log_line(row, axes, fixed) for row in rows])
    best = best_of_repeats(rows, axes, best_by)
    folder.write_lines("step_prediction_max.log", [log_line(row, axes, fixed) for row in best])


def _report(error: Exception, setting: Setting, folder: RunFolder) -> int:
    """Say in a line what ended the run; the trace of an unexpected error goes to the run's folder."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        what = f"cannot write to {folder.path}: {error.strerror}"
    elif isinstance(error, ClientDied):
        what = str(error)
    else:
        what = f"the engine failed: {type(error).__name__}: {error}; see {folder.write_error(error)}"
    folder.give_up()
    print(f"stopped at {setting}: {what}", file=sys.stderr)
    return 1
