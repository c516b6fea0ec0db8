"""`python -m exp.compare runs/a runs/b`: two runs side by side, and by what factor they differ, setting by setting."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from neusim._script import prepare

    prepare(__file__)

from collections.abc import Mapping
from typing import Any

import pandas as pd

from exp.harness.comparable import check_comparable, unsaid
from exp.harness.frames import rows_of
from neusim.validating.run_folder import open_run
from neustream.cli.arguments import BadInput, Parser, exit_code_for
from neustream.cli.report import Column, axis_columns, format_table, number, percent, text

RATES = {"token_goodput": "token goodput/s", "request_goodput": "req goodput/s"}
"""Figures whose ratio is shown, and how they are called."""
SHARES = {"slo_attainment": "SLO met", "reject_rate": "rejected"}


def read_summary(text: str) -> Mapping[str, Any]:
    """The summary of a run, given by its folder or its name in runs/. Raises BadInput."""
    run = open_run(text)
    run.need("device", "axes")
    return run.summary


def match(a: Mapping[str, Any], b: Mapping[str, Any]) -> pd.DataFrame:
    """The settings that both runs have (same axes and seed), with the figures of both. Raises BadInput for none."""
    if a["axes"] != b["axes"]:
        raise BadInput(f"the runs swept different things: {', '.join(a['axes'])} and {', '.join(b['axes'])}")
    keys, figures = [*a["axes"], "seed"], [*RATES, *SHARES]
    ours = pd.DataFrame(a["settings"]).reindex(columns=[*keys, "load", *figures])
    theirs = pd.DataFrame(b["settings"]).reindex(columns=[*keys, *figures]).drop_duplicates(keys, keep="last")
    both = ours.merge(theirs, on=keys, suffixes=("_a", "_b"))
    if both.empty:
        raise BadInput("the runs have no setting in common (same rate, cv, SLO scales and seed)")
    for name in RATES:
        both[f"{name}_ratio"] = both[f"{name}_a"] / both[f"{name}_b"].where(both[f"{name}_b"] != 0)
    return both


def columns(axes: list[str]) -> list[Column]:
    """A figure of the first run, the same of the second, their ratio."""
    found = [*axis_columns(axes), Column("×cap", number("load", 2)), Column("seed", text("seed"))]
    for name, heading in RATES.items():
        found += [Column(f"{heading} a", number(f"{name}_a", 4)), Column("b", number(f"{name}_b", 4))]
        found.append(Column("a/b", number(f"{name}_ratio")))
    for name, heading in SHARES.items():
        found += [Column(f"{heading} a", percent(f"{name}_a")), Column("b", percent(f"{name}_b"))]
    return found


def compare(a: Mapping[str, Any], b: Mapping[str, Any], *, force: bool = False) -> str:
    """The printed comparison. Raises BadInput where the runs differ in more than their policy, unless `force`."""
    lines = [f"{side}: {run['model']}, policy {run['policy']}, {run['device']}" for side, run in (("a", a), ("b", b))]
    lines += check_comparable([("a", a), ("b", b)], force=force)
    commits = [run.get("versions", {}).get("commit", "?") for run in (a, b)]
    if commits[0] != commits[1]:
        lines.append(f"the runs are of different commits: {commits[0]} and {commits[1]}")
    if unsaid(a, b):
        lines.append(f"only one of the runs says its {', '.join(unsaid(a, b))}")
    lines += [f"run {side} was not completed" for side, run in (("a", a), ("b", b)) if not run.get("complete", True)]
    return "\n".join([*lines, format_table(rows_of(match(a, b)), columns(a["axes"]))])


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="exp.compare", description=(__doc__ or "").split(": ", 1)[1])
    parser.add_argument("a", help="a run: its folder, or its name in runs/")
    parser.add_argument("b", help="the run to compare it with")
    parser.add_argument("--force", action="store_true", help="also where they differ in more than the policy")
    given = parser.parse_args(arguments)

    def run() -> int:
        print(compare(read_summary(given.a), read_summary(given.b), force=given.force))
        return 0

    return exit_code_for(parser, run)


if __name__ == "__main__":
    sys.exit(main())
