"""How far simulated goodput is from real goodput.

    python neusim/validate.py                       # short real experiments on this machine, then the same simulated
    python neusim/validate.py --run runs/A runs/B   # real runs that are there already
    python neusim/validate.py --reference DIR       # logged runs: results.json and tables/<device>/<model>.json

docs/simulator.md says what is compared, and what came of it.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # neusim/_script.py says why
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from neusim._script import prepare

    prepare(__file__)

import argparse
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from neusim.validating.experiments import ShortExperiment, find_experiments, run_experiments
from neusim.validating.reference import Comparison, compare, errors, read_results, with_own_speed
from neusim.validating.replay import RealRun, read_run
from neustream.cli.arguments import Parser
from neustream.cli.paths import RUNS, TABLES
from neustream.policies import POLICIES
from neustream.slo import MS_PER_S


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="validate.py", description=(__doc__ or "").split("\n")[0])
    result.add_argument("--run", type=Path, nargs="+", metavar="DIR", help="folders of real runs to compare with")
    result.add_argument("--reference", type=Path, metavar="DIR", help="folder of logged runs to compare with")
    result.add_argument(
        "--slowness", type=float, metavar="X", help="with --reference: steps take X times the table's (default 1)"
    )
    result.add_argument("--kind", nargs="+", metavar="KIND", help="real experiments to run (default all)")
    result.add_argument(
        "--policy", nargs="+", metavar="P", help="policies of the real experiments (default three each)"
    )
    result.add_argument("--out", type=Path, help="where the real runs go (default runs/validate-<time>)")
    result.add_argument("--tables", type=Path, default=TABLES, help="where a run's table is looked for, if it moved")
    return result


def show_reference(folder: Path, slowness: float | None) -> None:
    """Print logged and simulated counts row by row, and the errors of each model and policy.

    Where the speed of the logged runs is known, once more with steps at that speed.
    """
    settings = len({key for key, _ in read_results(folder)})
    with tqdm(total=settings, unit="run", leave=False) as bar:
        rows = compare(folder, processes=os.cpu_count() or 1, slowness=slowness, on_done=bar.update)

    def pair(row: Comparison) -> tuple[str, str]:
        return row.key[1], row.key[2]

    print(
        f"{'model':14} {'policy':10} {'rate':>5} {'cv':>4} {'slo':>5} {'logged':>6} {'simulated':>9} {'error':>6}",
        end="",
    )
    print(f"  {'at own speed':>12} {'error':>6}" if any(row.at_own_speed is not None for row in rows) else "")
    for row in rows:
        _, model, system, rate, cv, scale = row.key
        setting = f"{model:14} {system:10} {rate:5g} {cv:4g} {scale:5g}"
        own = row.at_own_speed
        note = f"  {own:12} {own - row.logged:+6}" if own is not None else ""
        note += f"  {row.in_flight} in flight at the end" if row.in_flight else ""
        note += "  repeats disagree" if row.is_contradicted else ""
        print(f"{setting} {row.logged:6} {row.simulated:9} {row.simulated - row.logged:+6}{note}")
    print("\n|simulated − logged|, of 500 requests; in brackets without the settings whose own repeats disagree")
    for (model, system), group in groupby(sorted(rows, key=pair), pair):
        chosen = list(group)
        line = f"{model:14} {system:10} {len(chosen):3} runs{show_errors(chosen)}"
        at_own_speed = with_own_speed(chosen)
        print(line + (f"   at own speed{show_errors(at_own_speed)}" if at_own_speed else ""))


def show_errors(rows: Sequence[Comparison]) -> str:
    """Median and 90th percentile of all, and in brackets of those that are not contradicted."""
    figures, text = errors(rows), ""
    for name in ("median", "p90"):
        inner = figures.get(f"agreeing_{name}")
        text += f"  {name} {figures[f'all_{name}']:.1f}" + (f" ({inner:.1f})" if inner is not None else "")
    return text


def show_run(run: RealRun) -> None:
    """Print a real run's goodput beside that of its simulation, setting by setting.

    Twice: with the table's seconds, and at the speed that the machine had at each time of the run.
    """
    print(f"{run.folder}: {run.summary['policy']}, {run.table.origin} table of {run.table.model} on {run.table.device}")
    print(f"  {'setting':38} {'':16} {'real':>8} {'simulated':>18} {'at its own speed':>18}")
    for index, setting in enumerate(run.settings):
        results = [run.replay(index, at_own_speed=own).summary for own in (False, True)]
        axes = " ".join(f"{axis} {setting[axis]:.4g}" for axis in run.summary.get("axes", ("rate", "cv")))
        for key in ("request_goodput", "token_goodput", "good"):
            cells = [f"{result[key]:.4g} {relative_error(setting[key], result[key]):>8}" for result in results]
            print(f"  {axes:38} {key:16} {setting[key]:8.4g} {cells[0]:>18} {cells[1]:>18}")
            axes = ""
        steps = run.steps[index]
        drift = ", ".join(f"{module} {ratio:.2f}" for module, ratio in steps.drift.items()) or "not known"
        print(f"    its steps took, × the table: {drift}; {steps.overhead * MS_PER_S:.2f} ms beside each")


def relative_error(real: float, simulated: float) -> str:
    """`+3.1%`; a dash where the real figure is 0."""
    return f"{(simulated - real) / real:+.1%}" if real else "-"


def chosen_experiments(kinds: Sequence[str] | None) -> dict[str, ShortExperiment]:
    """The experiments of those kinds, or all. Raises ValueError for a kind that is not installed, or if none is."""
    known = find_experiments()
    if not known:
        raise ValueError("no experiments are installed; `bash install.sh` installs them")
    for kind in kinds or ():
        if kind not in known:
            raise ValueError(f"argument --kind: no kind {kind!r}; there are {', '.join(known)}")
    return {kind: known[kind] for kind in dict.fromkeys(kinds or known)}


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    command = parser()
    options = command.parse_args(argv)
    options.out = options.out and options.out.resolve()
    unknown = [policy for policy in options.policy or () if policy not in POLICIES]
    if unknown:
        command.error(f"unknown policy {unknown[0]!r}; there are {', '.join(POLICIES)}")
    try:
        if options.reference:
            show_reference(options.reference, options.slowness)
        folders: Iterable[Path] = options.run or ()
        if not options.run and not options.reference:
            out = options.out or RUNS / f"validate-{time.strftime('%Y%m%d-%H%M%S')}"
            folders = run_experiments(chosen_experiments(options.kind), options.policy, out)
        for folder in folders:
            show_run(read_run(folder, options.tables))
    except ValueError as error:
        command.error(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
