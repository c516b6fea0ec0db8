"""A seeded library of small plotting programs: they stand in for what a model with random weights cannot write.

Most make a picture. The rest fail, hang, print too much, or make none: how each one does is known beforehand. Whatever
is shown of a run with them has to say so: `STAND_IN` is the sentence, and each call carries `origin="library"`.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from agent_plugin.tools import plot_parts
from agent_plugin.tools.result import Label, ToolCall

STAND_IN = "programs come from a seeded library that stands in for the model"
SHARES: Mapping[Label, float] = MappingProxyType(
    {"ok": 0.78, "error": 0.12, "no_picture": 0.04, "timeout": 0.03, "output": 0.03}
)
"""How many of the programs do how, unless said otherwise."""


@dataclass(frozen=True, slots=True)
class Program:
    """One program of the library, and how it does in a sandbox with limits as the default ones or tighter."""

    name: str
    code: str
    label: Label

    @property
    def call(self) -> ToolCall:
        """The payload that asks for its execution."""
        return ToolCall(self.code, origin="library")


@dataclass(frozen=True, slots=True)
class PlotLibrary:
    """Programs by number; the same seed and shares always give the same programs.

    `shares`: label → share of the programs, of the labels in `SHARES`. Raises ValueError for shares that are negative,
    of another label, or do not sum to 1.
    """

    seed: int = 0
    shares: Mapping[Label, float] = field(default_factory=lambda: SHARES)

    def __post_init__(self) -> None:
        for label, share in self.shares.items():
            if label not in SHARES:
                raise ValueError(f"no program is labelled {label!r}, labels are {', '.join(SHARES)}")
            if not 0 <= share <= 1:
                raise ValueError(f"the share of {label} is {share}, expected 0 to 1")
        total = sum(self.shares.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the programs sum to {total:g}, expected 1")

    def program(self, number: int, attempt: int = 0) -> Program:
        """The program of a task; further attempts at it (repairs) are programs of their own, with the same shares."""
        rng = random.Random(f"{self.seed}/{number}/{attempt}")
        label = rng.choices(list(self.shares), list(self.shares.values()))[0]
        name = f"{label}-{number}" + (f"-{attempt}" if attempt else "")
        return Program(name, write_program(rng, label, name), label)

    def programs(self, count: int, label: Label | None = None) -> list[Program]:
        """The first `count` programs, or the first ones with that label. Raises ValueError for one without a share."""
        if label is not None and not self.shares.get(label):
            raise ValueError(f"this library has no program labelled {label!r}")
        found: list[Program] = []
        number = 0
        while len(found) < count:
            program = self.program(number)
            number += 1
            if label in (None, program.label):
                found.append(program)
        return found


def write_program(rng: random.Random, label: Label, name: str) -> str:
    """A program's text: what it is, its data, a plot, its end, and somewhere among them what goes wrong."""
    kind = rng.choice(sorted(plot_parts.KINDS))
    data, plot = plot_parts.KINDS[kind](rng)
    head = f'"""A {kind} plot. {STAND_IN[0].upper()}{STAND_IN[1:]}: {name}."""'
    lines = [head, "import matplotlib.pyplot as plt", "import numpy as np", ""]
    parts = [data, plot_parts.FRAME.format(width=rng.choice((5, 6, 8)), height=rng.choice((4, 5)), dpi=100), plot]
    save = plot_parts.SAVE.format(name="novice.png")
    if label == "no_picture":
        save = rng.choice(plot_parts.FORGETS)
    elif label != "ok":
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(plot_parts.FAULTS[label]))
    body = [textwrap.dedent(part).strip("\n") for part in (*parts, save)]
    return "\n".join([*lines, *body]) + "\n"
