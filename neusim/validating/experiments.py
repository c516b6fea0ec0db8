"""Short real experiments to compare with. The packages that serve models say which there are; nothing here knows them.

A package adds a kind by an entry point in the group `neustream.experiments`: its name, and a `ShortExperiment`.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal

from neustream.cli.paths import ROOT
from neustream.policies import POLICIES

GROUP = "neustream.experiments"


@dataclass(frozen=True, slots=True)
class ShortExperiment:
    """A program that serves a model for a minute or two, and what to ask of it."""

    program: str
    """What `python -m` runs. It takes --model, --policy, --table and --out."""
    model: str
    policies: tuple[str, ...]
    serves: Literal["llm", "loop"]
    """The policies that it can run: those of language models, or those of pipelines."""
    size: tuple[str, ...]
    """Flags that keep it short."""

    def can_run(self, policy: str) -> bool:
        """Whether that policy serves this kind of model."""
        entry = POLICIES.get(policy)
        return entry is not None and bool(entry.llm if self.serves == "llm" else entry.loop)

    def command(self, policy: str, table: Path, out: Path) -> list[str]:
        """What `python -m` gets for one policy."""
        flags = ["--model", self.model, "--policy", policy, "--table", str(table), "--out", str(out)]
        return [self.program, *flags, *self.size]


def find_experiments() -> dict[str, ShortExperiment]:
    """What is installed, by kind. Raises ValueError for an entry that is no `ShortExperiment` or cannot be loaded."""
    found = {}
    for entry in sorted(_entries(), key=lambda entry: entry.name):
        try:
            experiment = entry.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"experiment {entry.name} cannot be loaded: {error}") from error
        if not isinstance(experiment, ShortExperiment):
            raise ValueError(f"experiment {entry.name}: {entry.value} must be a ShortExperiment, is {experiment!r:.60}")
        found[entry.name] = experiment
    return found


def _entries() -> Sequence[EntryPoint]:
    """What is installed. An installation in place that is older than the checkout lacks the group: then its own."""
    installed = tuple(entry_points(group=GROUP))
    project = ROOT / "pyproject.toml"
    if installed or not project.is_file():
        return installed
    groups = tomllib.loads(project.read_text())["project"].get("entry-points", {})
    return [EntryPoint(name, value, GROUP) for name, value in groups.get(GROUP, {}).items()]


def run_experiments(
    experiments: Mapping[str, ShortExperiment], policies: Sequence[str] | None, out: Path
) -> Iterator[Path]:
    """Run each under its policies, or those of `policies` that it can run; yields the folder of each run.

    Each kind's latency table is measured right before, since a machine is not equally fast at all times. Raises
    ValueError if a program fails.
    """
    for kind, experiment in experiments.items():
        table = out / f"{experiment.model}.json"
        chosen = [policy for policy in policies or experiment.policies if experiment.can_run(policy)]
        if chosen:
            measure = ["neusim.profile", "--model", experiment.model, "--out", str(table)]
            run_program(f"measuring {experiment.model}", measure)
        for policy in chosen:
            folder = out / f"{kind}-{policy}"
            run_program(f"serving {experiment.model} under {policy}", experiment.command(policy, table, folder))
            yield folder


def run_program(what: str, command: Sequence[str]) -> None:
    """Run `python -m …` from the repository's root. Raises ValueError if it fails."""
    print(f"{what} …", file=sys.stderr, flush=True)
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    if result.returncode:
        raise ValueError(f"exit code {result.returncode} of python -m {' '.join(command)}")
