"""Measure the code executor's latency table on this machine: `python -m agent_plugin.tools.measure`.

Programs of the seeded library that make a picture run in the sandbox, a fixed number of them always at once: as soon as
one has ended the next is handed over. So a program's seconds include what the interpreters for the next ones take of
the processors, as in service under load.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from agent_plugin.sandbox.client import SandboxRefused
from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.pool import Sandbox
from agent_plugin.sandbox.result import ToolResult
from agent_plugin.sandbox.selftest import RUNGS
from agent_plugin.tools.plots import PlotLibrary, Program
from neustream.catalog.machine import device_slug, num_cores
from neustream.catalog.workflows import CODE_RUNNER
from neustream.cli.arguments import BadInput, Parser, RunFailed, exit_code_for, whole
from neustream.cli.paths import TABLES
from neustream.latency import BatchLatency
from neustream.tables import LatencyTable, save_table, table_path
from neustream.workflow.stage import TOOL

SAMPLES = 20
"""Programs timed at each number of them at once."""
ALONE = 3
"""Programs timed one after the other, on an interpreter that waits, and on a sandbox that has just been made."""
PAUSE = 1.5
"""Seconds in which interpreters get ready before such a program."""
PATIENT = Limits(wall=120.0, cpu=60.0)


def time_at(sandbox: Sandbox, programs: Sequence[Program], at_once: int, bar: tqdm[Any] | None = None) -> list[float]:
    """Seconds from handing over each program to its result, `at_once` of them always under way.

    The first `at_once` are not counted: interpreters were ready for them. Raises RunFailed where a program fails.
    """
    todo = iter(programs)
    under_way: dict[Future[ToolResult], tuple[Program, float, bool]] = {}
    found: list[float] = []

    def hand_over(*, counts: bool) -> None:
        program = next(todo, None)
        if program is not None:
            under_way[sandbox.submit(program.code)] = (program, time.perf_counter(), counts)

    for _ in range(at_once):
        hand_over(counts=False)
    while under_way:
        done, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in done:
            now = time.perf_counter()
            program, since, counts = under_way.pop(future)
            _check(program, future.result())
            if counts and len(under_way) >= at_once - 1:  # near the end fewer are under way
                found.append(now - since)
            hand_over(counts=True)
            if bar is not None:
                bar.update()
    return found


def time_alone(sandbox: Sandbox, programs: Sequence[Program], pause: float) -> list[float]:
    """Seconds of each program with nothing else under way: `pause` s before it let interpreters get ready."""
    found = []
    for program in programs:
        time.sleep(pause)
        since = time.perf_counter()
        _check(program, sandbox.run(program.code))
        found.append(time.perf_counter() - since)
    return found


def _check(program: Program, result: ToolResult) -> None:
    if not result.pictures:
        last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunFailed(f"program {program.name} made no picture ({result.reason}): {last}")


def measure(
    *, seats: int, rung: str = "auto", samples: int = SAMPLES, seed: int = 0, progress: bool = True
) -> LatencyTable:
    """The table of this machine's executor, module `execute`: seconds of a program by how many are under way.

    Raises SandboxRefused where no wall holds, RunFailed where a program that should make a picture makes none.
    """
    programs = PlotLibrary(seed, {"ok": 1.0}).programs(samples + 2 * seats)
    seconds: dict[int, float] = {}
    total = sum(samples + 2 * at_once for at_once in range(1, seats + 1))
    with (
        Sandbox(rung, seats=seats, limits=PATIENT) as sandbox,
        tqdm(total=total, disable=None if progress else True) as bar,
    ):
        for at_once in range(1, seats + 1):
            bar.set_description(f"{at_once} at once")
            seconds[at_once] = median(time_at(sandbox, programs[: samples + 2 * at_once], at_once, bar))
        held = sandbox.rung
        warm = median(time_alone(sandbox, programs[:ALONE], pause=PAUSE))
    cold = []
    for program in programs[:ALONE]:
        with Sandbox(held, seats=1, limits=PATIENT) as sandbox:
            cold += time_alone(sandbox, [program], pause=0.0)
    info = {
        "source": f"agent_plugin.tools.measure, matplotlib {version('matplotlib')}, {date.today().isoformat()}",
        "programs": f"library, seed {seed}: those that make a picture",
        "rung": held,
        "samples": samples,
        "warm_seconds": warm,
        "cold_seconds": median(cold),
    }
    model = BatchLatency(tuple(seconds), tuple(seconds.values()))
    return LatencyTable(CODE_RUNNER, device_slug("cpu"), {TOOL: model}, info)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="python -m agent_plugin.tools.measure", description="Measure the code executor's table.")
    result.add_argument("--seats", type=whole(1), help="programs at once, up to which is measured; default: the cores")
    result.add_argument("--rung", choices=("auto", *RUNGS, "none"), default="auto", help="the wall; default: auto")
    result.add_argument("--samples", type=whole(2), default=SAMPLES, help=f"programs per point (default {SAMPLES})")
    result.add_argument("--seed", type=whole(0), default=0, help="of the library of programs (default 0)")
    result.add_argument("--out", type=Path, help=f"the file; default neusim/tables/<device>/{CODE_RUNNER}.json")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    command = parser()
    given = command.parse_args(argv)

    def run() -> int:
        out = given.out or table_path(TABLES, device_slug("cpu"), CODE_RUNNER)
        if out.is_dir():
            raise BadInput(f"--out is a folder, expected a file: {out}")
        try:
            table = measure(seats=given.seats or num_cores(), rung=given.rung, samples=given.samples, seed=given.seed)
        except SandboxRefused as error:
            raise RunFailed(str(error)) from None
        save_table(table, out)
        print(f"programs from the {table.info['programs']}; rung {table.info['rung']}")
        model = table[TOOL]
        assert isinstance(model, BatchLatency)
        for at_once, each in zip(model.batch, model.seconds, strict=True):
            print(f"{at_once} at once: {each:.3f} s each, {at_once / each:.2f} programs/s")
        print(f"alone: {table.info['warm_seconds']:.3f} s on a waiting interpreter, ", end="")
        print(f"{table.info['cold_seconds']:.3f} s on a sandbox that has just been made")
        print(f"written to {out}")
        return 0

    return exit_code_for(command, run)


if __name__ == "__main__":
    sys.exit(main())
