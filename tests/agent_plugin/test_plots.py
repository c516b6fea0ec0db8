"""The library of programs that stand in: seeded, shared out as told, and each does what its label says."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from sandbox_helpers import make_sandbox

from agent_plugin.sandbox.limits import Limits
from agent_plugin.tools import plot_parts
from agent_plugin.tools.plots import SHARES, STAND_IN, PlotLibrary, write_program
from agent_plugin.tools.result import LABELS, make_output

SHORT = 1.0
"""Seconds for programs that hang."""


class Chooses(random.Random):
    """A random source that takes one choice from a list as told, and all others at random."""

    def __init__(self, seed, options, choice):
        super().__init__(seed)
        self.told = (list(options), choice)

    def choice(self, seq):
        return self.told[1] if list(seq) == self.told[0] else super().choice(seq)


def every_program():
    """`(name, label, text)`: each kind of plot, and each thing that may go wrong, in a plot of some kind."""
    kinds = sorted(plot_parts.KINDS)
    for kind in kinds:
        yield kind, "ok", write_program(Chooses(kind, kinds, kind), "ok", kind)
    for label, faults in {**plot_parts.FAULTS, "no_picture": plot_parts.FORGETS}.items():
        for number, fault in enumerate(faults):
            name = f"{label} {number}"
            yield name, label, write_program(Chooses(name, faults, fault), label, name)


@pytest.fixture(scope="module")
def outputs(rungs):
    """What became of every program, on the strongest rung there is."""
    if not rungs.present:
        pytest.skip(f"no rung: {rungs.lacking}")
    with make_sandbox(rungs.present[0], seats=2, limits=Limits(wall=300.0, cpu=60.0), preload=True) as sandbox:
        futures = {
            name: sandbox.submit(text, wall=SHORT if label == "timeout" else None)
            for name, label, text in every_program()
        }
        return {name: make_output(future.result(), "library") for name, future in futures.items()}


@pytest.mark.parametrize(("name", "label"), [(name, label) for name, label, _ in every_program()])
def test_each_program_does_what_its_label_says(outputs, name, label):
    output = outputs[name]
    assert output.label == label, output
    assert output.origin == "library"
    assert (output.picture is not None) == (label == "ok")


def test_the_same_seed_gives_the_same_programs_and_another_seed_others():
    texts = [[program.code for program in PlotLibrary(seed).programs(50)] for seed in (3, 3, 4)]
    assert texts[0] == texts[1]
    assert len(set(texts[0]) & set(texts[2])) == 0
    assert len(set(texts[0])) == 50


def test_shares_hold():
    count = 4000
    labels = Counter(program.label for program in PlotLibrary(1).programs(count))
    for label, share in SHARES.items():
        assert abs(labels[label] / count - share) < 4 * (share * (1 - share) / count) ** 0.5
    assert {program.label for program in PlotLibrary(1, {"ok": 1.0}).programs(200)} == {"ok"}


def test_a_repair_is_a_program_of_its_own():
    library = PlotLibrary(5, {"ok": 0.5, "error": 0.5})
    texts = {library.program(7, attempt).code for attempt in range(5)}
    assert len(texts) == 5
    assert {library.program(7, attempt).label for attempt in range(20)} == {"ok", "error"}


def test_programs_with_one_label():
    assert {program.label for program in PlotLibrary(2).programs(5, "timeout")} == {"timeout"}
    with pytest.raises(ValueError, match="no program labelled 'error'"):
        PlotLibrary(2, {"ok": 1.0}).programs(5, "error")


def test_every_program_says_that_it_stands_in():
    for program in PlotLibrary(6).programs(100):
        assert STAND_IN.removeprefix("p") in program.code.splitlines()[0]
        assert program.call.origin == "library"
        assert program.call.code == program.code
        assert program.label in LABELS


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"ok": 0.5}, "sum to 0.5, expected 1"),
        ({"ok": 1.5, "error": -0.5}, "share of ok is 1.5, expected 0 to 1"),
        ({"cancelled": 1.0}, "no program is labelled 'cancelled', labels are ok, error"),
    ],
)
def test_shares_that_cannot_be(shares, message):
    with pytest.raises(ValueError, match=message):
        PlotLibrary(0, shares)
