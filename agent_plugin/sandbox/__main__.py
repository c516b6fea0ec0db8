"""`python -m agent_plugin.sandbox`: which rung holds here, probe by probe; exit code 0 if one does, else 1."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from typing import Any

from agent_plugin.sandbox import landlock
from agent_plugin.sandbox.bwrap import find_bwrap
from agent_plugin.sandbox.cgroups import find_parents
from agent_plugin.sandbox.client import SandboxRefused
from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.selftest import RUNGS, self_test, why_not
from agent_plugin.sandbox.trees import find_trees
from neustream.cli.arguments import Parser, whole


def describe() -> str:
    """This machine, in the words that matter here."""
    try:
        abi = f"Landlock ABI {landlock.landlock_abi()}"
    except landlock.LandlockError as error:
        abi = f"no Landlock ({error.strerror})"
    groups = "control groups for runs" if find_parents() else "no control groups for runs"
    return f"Linux {platform.release()} on {platform.machine()}, user {os.getuid()}, {abi}, {groups}"


def remarks(rung: str) -> list[str]:
    """What is weaker on this rung here than it could be."""
    found = []
    closed = find_trees().closed
    if rung == "landlock" and os.getuid() != 0:
        found.append(f"programs keep the user {os.getuid()}: only root can give them one of their own")
    if rung == "landlock" and os.getuid() == 0 and closed:
        found.append(f"programs may read past file modes (CAP_DAC_READ_SEARCH): Python lies behind {closed}")
    if rung == "bwrap" and os.getuid() == 0:
        found.append("programs are user 0 of the host, without capabilities, in a user namespace")
    if not find_parents():
        found.append("no control groups: memory is bounded by address space alone")
    return found


def main() -> int:
    """Print the report; the exit code."""
    parser = Parser(prog="python -m agent_plugin.sandbox", description=__doc__)
    parser.add_argument("--rung", choices=("all", *RUNGS), default="all", help="which to try; default: all")
    parser.add_argument(
        "--landlock-abi", type=whole(1), metavar="N", help="use this ABI, though the kernel knows a newer one"
    )
    parser.add_argument("--no-groups", action="store_true", help="make no control groups")
    given = parser.parse_args()
    trees = dataclasses.asdict(find_trees())
    settings: dict[str, Any] = {
        "limits": Limits().to_json(),
        "trees": trees,
        "bwrap": find_bwrap() or "",
        "folder": None,
    }
    settings |= {"abi": given.landlock_abi, "groups": not given.no_groups}
    print(describe())
    holding = []
    for rung in RUNGS if given.rung == "all" else (given.rung,):
        reason = why_not(rung)
        verdicts = []
        if reason is None:
            try:
                verdicts = self_test(settings | {"rung": rung})
            except SandboxRefused as error:
                reason = str(error)
        if reason is not None:
            print(f"\n{rung}: does not hold: {reason}")
            continue
        escaped = [verdict.probe for verdict in verdicts if not verdict.contained]
        print(f"\n{rung}: {'does not hold: ' + ', '.join(escaped) if escaped else 'holds'}")
        for line in remarks(rung):
            print(f"  note: {line}")
        for verdict in verdicts:
            print(f"  {'contained' if verdict.contained else 'ESCAPED  '}  {verdict.probe:24} {verdict.detail}")
        holding += [] if escaped else [rung]
    print(f"\nin use: {holding[0]}" if holding else "\nin use: none; programs are refused")
    return 0 if holding else 1


if __name__ == "__main__":
    sys.exit(main())
