"""A sandbox on each rung, made once; where a rung cannot work, it is shown that it is refused, with its reason."""

from __future__ import annotations

import pytest

from agent_plugin.sandbox.client import SandboxRefused
from agent_plugin.sandbox.planted import Planted
from agent_plugin.sandbox.pool import Sandbox
from agent_plugin.sandbox.selftest import LIMITS, RUNGS, why_not


@pytest.fixture(scope="session")
def sandboxes():
    """By rung: a sandbox whose interpreters have nothing preloaded, or None where the rung is refused."""
    made = {}
    try:
        for rung in RUNGS:
            reason = why_not(rung)
            if reason is None:
                made[rung] = Sandbox(rung, seats=4, warm=2, limits=LIMITS, preload=False)
            else:
                with pytest.raises(SandboxRefused, match="no program is run") as refusal:
                    Sandbox(rung)
                assert reason in str(refusal.value)
                made[rung] = None
        yield made
    finally:
        for sandbox in made.values():
            if sandbox is not None:
                sandbox.close()


@pytest.fixture(params=RUNGS)
def held(request, sandboxes):
    """The sandbox of each rung in turn; None where it is refused."""
    return sandboxes[request.param]


@pytest.fixture
def planted():
    with Planted() as there:
        yield there
        assert there.harm() == []
