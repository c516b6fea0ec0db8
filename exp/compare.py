"""`python -m exp.compare runs/a runs/b`: two runs side by side, and by what factor they differ, setting by setting."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
from collections.abc import Mapping
from typing import Any

from neusim.validating.run_folder import open_run
from neustream.cli.arguments import BadInput, Parser, exit_code_for
from neustream.cli.report import Column, axis_columns, format_table, number, percent, text

SAME = ("model", "device", "dtype", "tensor_parallel", "table_digest", "max_tokens", "requests", "prompts")
"""What two runs should share, or their figures mean different things."""
NAMES = {"token_goodput": "token goodput/s", "request_goodput": "req goodput/s"}


def read_summary(text: str) -> Mapping[str, Any]:
    """The summary of a run, given by its folder or its name in runs/. Raises BadInput."""
    run = open_run(text)
    run.need("device", "axes")
    return run.summary


def ratio(a: float, b: float) -> float | None:
    """a / b; None where b is 0."""
    return a / b if b else None


def match(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings that both runs have (same axes and seed), with the figures of both. Raises BadInput for none."""
    if a["axes"] != b["axes"]:
        raise BadInput(f"the runs swept different things: {', '.join(a['axes'])} and {', '.join(b['axes'])}")
    keys = [*a["axes"], "seed"]
    others = {tuple(row[key] for key in keys): row for row in b["settings"]}
    rows = []
    for row in a["settings"]:
        other = others.get(tuple(row[key] for key in keys))
        if other is None:
            continue
        pair: dict[str, Any] = {key: row[key] for key in [*keys, "load"]}
        for name in (*NAMES, "slo_attainment", "reject_rate"):
            pair |= {f"{name}_a": row[name], f"{name}_b": other[name]}
        pair |= {f"{name}_ratio": ratio(row[name], other[name]) for name in NAMES}
        rows.append(pair)
    if not rows:
        raise BadInput("the runs have no setting in common (same rate, cv, SLO scales and seed)")
    return rows


def columns(axes: list[str]) -> list[Column]:
    """A figure of the first run, the same of the second, their ratio."""
    found = [*axis_columns(axes), Column("×cap", number("load", 2))]
    found.append(Column("seed", text("seed")))
    for name, heading in NAMES.items():
        found += [Column(f"{heading} a", number(f"{name}_a", 4)), Column("b", number(f"{name}_b", 4))]
        found.append(Column("a/b", number(f"{name}_ratio")))
    for name, heading in (("slo_attainment", "SLO met"), ("reject_rate", "rejected")):
        found += [Column(f"{heading} a", percent(f"{name}_a")), Column("b", percent(f"{name}_b"))]
    return found


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The printed comparison."""
    lines = [f"{side}: {run['model']}, policy {run['policy']}, {run['device']}" for side, run in (("a", a), ("b", b))]
    for key in SAME:
        if a.get(key) != b.get(key):
            lines.append(f"the runs differ in {key}: {a.get(key)} and {b.get(key)}")
    for side, run in (("a", a), ("b", b)):
        if not run["complete"]:
            lines.append(f"run {side} was not completed")
    return "\n".join([*lines, format_table(match(a, b), columns(a["axes"]))])


def main() -> int:
    """The command."""
    parser = Parser(prog="exp.compare", description=(__doc__ or "").split(": ", 1)[1])
    parser.add_argument("a", help="a run: its folder, or its name in runs/")
    parser.add_argument("b", help="the run to compare it with")
    options: argparse.Namespace = parser.parse_args()

    def run() -> int:
        print(compare(read_summary(options.a), read_summary(options.b)))
        return 0

    return exit_code_for(parser, run)


if __name__ == "__main__":
    sys.exit(main())
