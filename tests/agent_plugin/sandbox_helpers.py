"""What several tests of the sandbox need."""

from __future__ import annotations

import time

import pytest

from agent_plugin.sandbox import pool
from agent_plugin.sandbox.cgroups import find_parents
from agent_plugin.sandbox.client import SandboxRefused
from agent_plugin.sandbox.pool import Sandbox
from agent_plugin.sandbox.selftest import LIMITS
from agent_plugin.sandbox.strays import processes_of, run_name

PATIENCE = 300
"""Seconds after which a condition is taken never to come true: a guard against hanging, not a limit."""


def wait_until(condition, what):
    """Wait for a condition, however busy the machine; returns what it gave."""
    give_up = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < give_up, f"never came true: {what}"
        time.sleep(0.02)
    return found


def refusal(rung="auto", **options):
    """The message with which a sandbox on this rung is refused."""
    with pytest.raises(SandboxRefused, match="no program is run") as refused:
        Sandbox(rung, **options).close()
    return str(refused.value)


def make_sandbox(rung, **options):
    """A sandbox whose self-test is taken for done: other tests make it."""
    before = pool.first_that_holds
    pool.first_that_holds = lambda settings, rungs: (rungs[0], [])
    try:
        return Sandbox(rung, **{"seats": 1, "warm": 1, "limits": LIMITS, "preload": False} | options)
    finally:
        pool.first_that_holds = before


def groups_of(keeper):
    """The control groups of a keeper's runs."""
    name = run_name(keeper, 0).removesuffix("0")
    return [group for parent in find_parents() for group in parent.glob(f"{name}*")]


def is_gone(keeper):
    """Whether no process and no control group of that keeper is left."""
    return not processes_of(keeper) and not groups_of(keeper)
