"""Fail closed: without a wall that holds, no program is run."""

from __future__ import annotations

import os
import platform
import struct
import subprocess
import sys

import pytest
from sandbox_helpers import refusal

from agent_plugin.sandbox import bwrap, landlock, selftest, trees
from agent_plugin.sandbox.client import SandboxRefused
from agent_plugin.sandbox.pool import Sandbox
from agent_plugin.sandbox.seccomp import ALLOW, ARCHITECTURES, ERRNO, JUMP_EQUAL, LOAD, RETURN
from agent_plugin.sandbox.selftest import RUNGS, first_that_holds, why_not

WITHOUT = """
import os, sys
from agent_plugin.sandbox import seccomp
seccomp.forbid_new_privileges()
seccomp.install_filter(bytes.fromhex({program!r}))
sys.argv = ["sandbox", *{arguments!r}]
{then}
"""
RUN = """
from agent_plugin.sandbox.client import SandboxRefused
from agent_plugin.sandbox.pool import Sandbox
try:
    Sandbox().run("open('/tmp/left-by-the-test', 'w')")
except SandboxRefused as error:
    print(error)
"""
CALLS = {
    "x86_64": {"clone": (56, 1), "unshare": (272, 1), "clone3": (435, 38), "landlock_create_ruleset": (444, 38)},
    "aarch64": {"clone": (220, 1), "unshare": (97, 1), "clone3": (435, 38), "landlock_create_ruleset": (444, 38)},
}
"""System calls and the error that a kernel without namespaces and Landlock, or a container's filter, gives for them."""
NAMESPACES = 0x7E020000


def kernel_without(*names):
    """A filter that lets everything through but these calls; of `clone` only what makes namespaces is refused."""
    machine = platform.machine()
    program = [(LOAD, 0, 0, 0)]
    for name in names:
        number, error = CALLS[machine][name]
        refuse = [(RETURN, 0, 0, ERRNO | error)]
        if name == "clone":
            refuse = [(LOAD, 0, 0, 16), (0x45, 0, 1, NAMESPACES), *refuse, (RETURN, 0, 0, ALLOW)]
        program += [(JUMP_EQUAL, 0, len(refuse), number), *refuse]
    return b"".join(struct.pack("<HBBI", *line) for line in [*program, (RETURN, 0, 0, ALLOW)])


def on_a_kernel_without(*names, then, arguments=()):
    code = WITHOUT.format(program=kernel_without(*names).hex(), then=then, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def known_processor():
    if platform.machine() not in ARCHITECTURES:
        pytest.skip(f"no filter for {platform.machine()}: refused there too, which test_hostile shows")


def test_a_kernel_that_has_neither_wall_runs_no_program():
    done = on_a_kernel_without(*CALLS[platform.machine()], then=RUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no program is run, no wall holds here: bwrap: ")
    assert "; landlock: this kernel has no Landlock" in done.stdout
    assert done.stdout.count("\n") == 1
    assert not os.path.exists("/tmp/left-by-the-test")


def test_the_command_says_that_nothing_holds():
    then = "from agent_plugin.sandbox.__main__ import main; sys.exit(main())"
    done = on_a_kernel_without(*CALLS[platform.machine()], then=then)
    assert done.returncode == 1, done.stderr
    assert done.stdout.endswith("in use: none; programs are refused\n")


def test_without_namespaces_the_second_wall_is_used(rungs):
    rungs.need("landlock")
    then = "from agent_plugin.sandbox.pool import Sandbox\nwith Sandbox() as s: print(s.rung, s.run('print(7)').stdout)"
    done = on_a_kernel_without("clone", "unshare", "clone3", then=then)
    assert done.stdout == "landlock 7\n\n", done


def test_the_command_says_which_wall_holds(rungs):
    rungs.need("landlock")
    then = "from agent_plugin.sandbox.__main__ import main; sys.exit(main())"
    done = on_a_kernel_without("clone", "unshare", "clone3", then=then)
    assert done.returncode == 0, done
    assert "\nbwrap: does not hold: " in done.stdout
    assert "\nlandlock: holds\n" in done.stdout
    assert done.stdout.endswith("\nin use: landlock\n")
    assert "ESCAPED" not in done.stdout


def test_without_bubblewrap_its_rung_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(selftest, "find_bwrap", lambda: None)
    assert "bwrap: bubblewrap is not installed (Debian and Ubuntu: apt-get install bubblewrap)" in refusal("bwrap")


def test_a_processor_without_a_filter_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    assert refusal().count("no system-call filter for the processor 's390x'") == len(RUNGS)


def test_an_older_landlock_holds_as_well(rungs):
    rungs.need("landlock")
    settings = settings_of() | {"rung": "landlock", "abi": 1}
    assert [verdict for verdict in selftest.self_test(settings) if not verdict.contained] == []


def test_without_control_groups_it_holds_as_well(rung):
    settings = settings_of() | {"rung": rung, "groups": False}
    assert [verdict for verdict in selftest.self_test(settings) if not verdict.contained] == []


def settings_of(**trees_of):
    found = trees.find_trees()
    fields = {"executable": found.executable, "paths": found.paths, "readable": found.readable} | trees_of
    return {"trees": fields, "bwrap": bwrap.find_bwrap() or "", "folder": None}


def test_a_wall_with_a_hole_is_refused_and_the_hole_named(rung):
    settings = settings_of(readable=(*trees.find_trees().readable, "/etc"))
    with pytest.raises(SandboxRefused, match=f"{rung}: not contained: .*list_the_system \\(got through\\)"):
        first_that_holds(settings, (rung,))


def test_interpreters_that_cannot_start_are_refused_with_their_last_words(rungs):
    rungs.need("bwrap")
    with pytest.raises(SandboxRefused, match=r"no program is run.*: bwrap: no interpreter starts: bwrap: execvp "):
        first_that_holds(settings_of(readable=()), ("bwrap",))


def test_a_rung_that_nobody_knows_is_refused_in_one_line():
    with pytest.raises(ValueError, match="rung is 'docker', known are auto, bwrap, landlock, none"):
        Sandbox("docker")


def test_reasons_why_a_rung_is_lacking_are_the_kernels(monkeypatch):
    def switched_off():
        raise landlock.LandlockError(95, "Landlock is switched off")

    monkeypatch.setattr(landlock, "landlock_abi", switched_off)
    assert why_not("landlock") == "Landlock is switched off"
