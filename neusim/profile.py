"""Measure a model's latency table on this machine: `python neusim/profile.py --model opt-13b`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neusim.profiling.settings import DTYPES, SettingsError, make_settings
from neusim.profiling.visits import Partial, partial_path
from neustream.cli.arguments import Parser
from neustream.tables import LatencyTable, save_table

INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="profile.py", description="Measure the latency table of a model on this machine.")
    result.add_argument("--model", required=True, help="a language model or its folder, or an image pipeline")
    result.add_argument("--engine", default="v0", help="vLLM 0.5.4 (v0, the default) or today's (v1, also: vllm)")
    result.add_argument("--device", help="cpu or cuda; default: cuda where there is an NVIDIA GPU")
    result.add_argument("--dtype", default="auto", help=f"{', '.join(DTYPES)}; auto is the fastest that fits")
    result.add_argument("--tp", type=int, default=1, help="tensor parallelism (default 1)")
    result.add_argument("--quick", action="store_true", help="a coarser grid, fewer repeats")
    result.add_argument("--layers", metavar="A,B", help="measure these two depths and extrapolate, as 2,4")
    result.add_argument("--repeats", type=int, help="visits of each point (default 9, quick 5)")
    result.add_argument("--out", type=Path, help="the table's file; default neusim/tables/<device>/<model>.json")
    return result


def profile_model(model: str, **options: Any) -> Path:
    """Measure `model`, print the fit, write the table; returns its path.

    `options` are those of `neusim.profiling.settings.make_settings`. Raises SettingsError for bad input,
    before anything heavy; what was measured survives an interruption. The engine stays loaded in the process that
    calls this; to keep that clean, run this file in one of its own.
    """
    settings, target = make_settings(model, **options)
    start = time.monotonic()
    table = target.profiler().profile(settings)
    save_table(table, settings.out)
    Partial(partial_path(settings.out), {}).discard()
    print_fit(table)
    print(f"written to {settings.out} after {time.monotonic() - start:.0f} s")
    return settings.out


def print_fit(table: LatencyTable) -> None:
    """One line per module (R², errors on held-out points), and a warning if the machine was busy."""
    if disturbed := table.info.get("disturbed"):
        busy = f"other work kept this machine busy, and {disturbed:.0%} of the points were never timed undisturbed"
        print(f"warning: {busy}; they count only where most are so. Profile again when it is idle")
    for module, fit in table.info.get("fit", {}).items():
        unseen = "none held out"
        if fit["held_out"]:
            unseen = (
                f"{fit['held_out']} held out: worst relative error {fit['worst_relative_error']:.1%}, "
                f"median {fit['median_relative_error']:.1%}"
            )
        r2 = "unknown" if fit["r2"] is None else f"{fit['r2']:.4f}"
        print(f"{module}: R² {r2}, {fit['points']} points; {unseen}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    command = parser()
    arguments = vars(command.parse_args(argv))
    try:
        profile_model(**arguments)
    except SettingsError as error:
        print(f"{command.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured is kept: the same command resumes", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
