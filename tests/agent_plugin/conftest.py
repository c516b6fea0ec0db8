"""A sandbox on each rung, made once; where this system lacks a rung, its refusal is tested and the rest skips."""

from __future__ import annotations

import pytest

from agent_plugin.sandbox.planted import Planted
from agent_plugin.sandbox.pool import Sandbox
from agent_plugin.sandbox.selftest import LIMITS, RUNGS, why_not


class Rungs:
    """The sandboxes by rung, made when first asked for."""

    def __init__(self):
        self.lacking = {rung: reason for rung in RUNGS if (reason := why_not(rung)) is not None}
        self._made = {}

    @property
    def present(self):
        """The rungs that this system has."""
        return [rung for rung in RUNGS if rung not in self.lacking]

    def __getitem__(self, rung):
        """The sandbox of a rung, nothing preloaded. Skips the test where this system lacks the rung."""
        self.need(rung)
        if rung not in self._made:
            self._made[rung] = Sandbox(rung, seats=4, warm=2, limits=LIMITS, preload=False)
        return self._made[rung]

    def need(self, rung):
        """Skips the test, saying why, where this system lacks the rung."""
        if rung in self.lacking:
            pytest.skip(f"this system lacks the rung {rung}: {self.lacking[rung]}")

    def close(self):
        for sandbox in self._made.values():
            sandbox.close()


@pytest.fixture(scope="session")
def rungs():
    made = Rungs()
    yield made
    made.close()


@pytest.fixture(params=RUNGS)
def rung(request, rungs):
    """Each rung's name in turn; skips where this system lacks it."""
    rungs.need(request.param)
    return request.param


@pytest.fixture
def held(rungs, rung):
    """The sandbox of each rung in turn."""
    return rungs[rung]


@pytest.fixture
def planted():
    with Planted() as there:
        yield there
        assert there.harm() == []
