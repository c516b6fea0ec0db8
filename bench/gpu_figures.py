"""Draws a campaign's goodput and batch sizes from its runs: `python bench/gpu_figures.py OUT`. Needs matplotlib.

`python -m exp.figures --runs OUT/runs/*` draws the same where everything is installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gpu_report import read, read_run, run_folder

from exp.figures.draw import draw_all
from exp.figures.study import BatchSizes, Study, bin_batches
from neustream.route import LOOP_MODULE

POLICIES_OF_BATCHES = ("neustream", "slack")


def study(out: Path, model: str, entry: dict[str, Any], device: str) -> Study | None:
    """A model's figures; None where no setting was completed."""
    keys = {(run["policy"], run["rate"]) for run in entry["goodput"]}
    rows = [run for policy, rate in keys if (run := read_run(out, model, policy, rate)) is not None]
    if not rows:
        return None
    rows.sort(key=lambda row: (row["rate"], row["policy"]))
    rate = max(row["rate"] for row in rows)
    batches = [found for policy in POLICIES_OF_BATCHES if (found := batch_sizes(out, model, policy, rate)) is not None]
    origin = f"measured on {device}, times taken at the engine"
    where = f"rate {rate:g}" if batches else ""
    return Study(model, device, False, origin, {"rate": rows}, batches, where, entry["plan"]["capacity"])


def batch_sizes(out: Path, model: str, policy: str, rate: float) -> BatchSizes | None:
    """Batch sizes of the denoising steps of one setting over its time; None where it ran none."""
    if read_run(out, model, policy, rate) is None:
        return None
    lines = (run_folder(out, model, policy, rate) / "steps.jsonl").read_text().splitlines()
    found = [step for step in map(json.loads, lines) if step["module"] == LOOP_MODULE]
    steps = [(step["time"], step["time"] + step["seconds"], step["batch_size"]) for step in found]
    return bin_batches(policy, steps, max(end for _, end, _ in steps)) if steps else None


def main() -> int:
    """The command."""
    out = Path(sys.argv[1])
    report = read(out / "gpu.json")
    figures = out / "figures"
    figures.mkdir(exist_ok=True)
    for model, entry in report["models"].items():
        found = study(out, model, entry, report["machine"]["device"])
        if found is not None:
            list(draw_all(found, figures))  # it draws as it goes
    return 0


if __name__ == "__main__":
    sys.exit(main())
