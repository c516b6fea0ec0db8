"""Runs the settings of an experiment one after the other, and writes and prints what came of them."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from exp.harness.client import Client, ClientDied
from exp.harness.folder import RunWriter
from exp.harness.observers import Recorder, StepTotals
from exp.harness.progress import Progress
from exp.harness.report import best_of_repeats, disturbances, heading, log_line
from exp.harness.serving import Interrupt, serve
from exp.harness.settings import Setting
from neustream.cli.disturbance import waited_seconds
from neustream.cli.report import Column, format_table
from neustream.driver import Ask, Driver, Observers
from neustream.goodput import GoodputCounter

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Bench(Protocol):
    """What differs from one kind of model to the next. The model is loaded once, for all settings."""

    def asks(self, setting: Setting) -> Sequence[Ask]:
        """The requests of a setting by rising arrival, in seconds from its start; the same for every policy."""
        ...

    def driver(self, setting: Setting) -> Driver:
        """A driver for one setting: idle, and without a memory of the settings before."""
        ...


def measure(
    bench: Bench, setting: Setting, num_settings: int, folder: RunWriter, interrupt: Interrupt, row: dict[str, Any]
) -> None:
    """Serve one setting and fill in `row`, as far as it came also when an error is raised."""
    counter, totals = GoodputCounter(), StepTotals()
    recorder = Recorder(folder, setting.index)
    asks = bench.asks(setting)
    due = {ask.request_id: ask.arrival for ask in asks}
    lag = 0.0

    def on_arrival(ask: Ask) -> None:
        nonlocal lag
        lag = max(lag, ask.arrival - recorder.origin - due[ask.request_id])

    driver = bench.driver(setting)
    waited, begun = waited_seconds(), time.monotonic()
    try:
        with closing(driver), Client(asks) as client, Progress(setting, num_settings, len(asks)) as progress:
            recorder.origin = client.start()
            observers = Observers(totals, counter, recorder, progress)
            serve(driver, client, observers, interrupt, on_arrival)
    finally:
        figures = counter.summary()
        row |= figures | totals.summary()
        row |= {"injected": len(asks), "complete": figures["requests"] == len(asks) and interrupt.signal is None}
        waited_share = (waited_seconds() - waited) / (time.monotonic() - begun)
        row |= {"client_lag": lag, "waited_share": waited_share}


def run_settings(
    bench: Bench,
    settings: Sequence[Setting],
    folder: RunWriter,
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
            row = _row(setting, header)
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
        extent = "everything" if summary["complete"] else "what there is"
        where = f"times taken at the {header['taken_at']}; {extent} is in {folder.path}"
        print("\n".join([heading(header), format_table(rows, columns), where, *disturbances(rows)]))
    return code


def _row(setting: Setting, header: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a setting before it is measured."""
    capacity = header.get("capacity")
    load = setting["rate"] / capacity if capacity else None
    return {**setting.values, "repeat": setting.repeat, "seed": setting.seed, "load": load}


def _write(
    folder: RunWriter, summary: dict[str, Any], rows: list[dict[str, Any]], axes: list[str], best_by: str
) -> None:
    folder.flush()
    folder.write_summary(summary)
    fixed = {"policy": summary["policy"], "model": summary["model"]}
    folder.write_lines("step_prediction.log", [log_line(row, axes, fixed) for row in rows])
    best = best_of_repeats(rows, axes, best_by)
    folder.write_lines("step_prediction_max.log", [log_line(row, axes, fixed) for row in best])


def _report(error: Exception, setting: Setting, folder: RunWriter) -> int:
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
