"""Does a rung hold here? Hostile programs are run on it, and it counts only if every one is contained."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from agent_plugin.sandbox import landlock, seccomp
from agent_plugin.sandbox.bwrap import find_bwrap
from agent_plugin.sandbox.client import Keeper, SandboxRefused
from agent_plugin.sandbox.limits import MIB, Limits
from agent_plugin.sandbox.planted import Planted
from agent_plugin.sandbox.probes import ATTEMPTS, attempts, flood
from agent_plugin.sandbox.result import ToolResult
from agent_plugin.sandbox.strays import processes_of

RUNGS = ("bwrap", "landlock")
"""Strongest first."""
LIMITS = Limits(wall=60.0, cpu=10.0, memory=256 * MIB, disk=8 * MIB, files=50, file_size=4 * MIB, output=16_384)
ENDS: dict[str, tuple[str, ...]] = {
    "endless_loop": ("timed_out",),
    "fork_bomb": ("timed_out",),
    "daemon": ("failed",),
    "memory_bomb": ("out_of_memory",),
    "disk_flood": ("too_much_disk", "too_many_files"),
    "many_files": ("too_many_files",),
    "output_flood": ("too_much_output",),
}
"""How each program that tries to use up the machine must end."""
SHORT = 1.0
"""Seconds for programs that only end when they are ended."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one probe showed."""

    probe: str
    contained: bool
    detail: str


def why_not(rung: str) -> str | None:
    """Why a rung cannot even be tried here, or None."""
    machine = platform.machine()
    if machine not in seccomp.ARCHITECTURES:
        return f"no system-call filter for the processor {machine!r}"
    if rung == "bwrap":
        return _why_no_namespaces()
    try:
        landlock.landlock_abi()
    except landlock.LandlockError as error:
        return str(error.strerror)
    return None


def _why_no_namespaces() -> str | None:
    """Why bubblewrap cannot wall in even a program that does nothing, or None: not installed, or the system forbids."""
    bwrap = find_bwrap()
    if bwrap is None:
        return "bubblewrap is not installed (Debian and Ubuntu: apt-get install bubblewrap)"
    command = [bwrap, "--unshare-all", "--unshare-user", "--ro-bind", "/", "/", "/bin/true"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        return f"{bwrap} does not start: {error.strerror}"
    if tried.returncode == 0:
        return None
    said = tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"]
    return f"bubblewrap may make no namespaces here: {said[-1]}"


def self_test(settings: Mapping[str, Any]) -> list[Verdict]:
    """Run the probes on a keeper of these settings. Raises SandboxRefused where no program can be run at all."""
    own = {"limits": LIMITS.to_json(), "preload": False, "seats": 2, "warm": 1}
    keeper = Keeper(dict(settings) | own)
    try:
        with Planted() as planted:
            tried = [keeper.submit(attempts(name, planted.values), {}, None) for name in ("files", "processes")]
            others = {
                name: keeper.submit(flood(name), {}, SHORT if "timed_out" in ends else None)
                for name, ends in ENDS.items()
            }
            verdicts = judge_attempts([future.result() for future in tried], planted)
            verdicts += [judge_end(name, future, ENDS[name]) for name, future in others.items()]
            harm = planted.harm()
            verdicts.append(Verdict("outside", not harm, "; ".join(harm) or "nothing was touched"))
    finally:
        keeper.close()
    left = [f"process {pid}" for pid in processes_of(keeper.pid)]
    return [*verdicts, Verdict("leftovers", not left, ", ".join(left) or "no process is left")]


def judge_attempts(results: Sequence[ToolResult], planted: Planted) -> list[Verdict]:
    """A verdict for every attempt; one that said nothing counts as not contained."""
    lines = [line.split() for result in results for line in result.stdout.splitlines()]
    said = {words[1]: words for words in lines if len(words) > 1 and words[0] in ("contained", "ESCAPED")}
    told = any(planted.is_told(result.stdout + result.stderr) for result in results)
    verdicts = [Verdict("secret", not told, "was told" if told else "was not told")]
    for name in ATTEMPTS:
        words = said.get(name, [])
        contained = words[:1] == ["contained"]
        detail = words[2] if contained and len(words) > 2 else "got through" if words else "said nothing"
        verdicts.append(Verdict(name, contained, detail))
    return verdicts


def judge_end(name: str, future: Future[ToolResult], ends: tuple[str, ...]) -> Verdict:
    """Whether a program that tries to use up the machine ended as it must."""
    result = future.result()
    return Verdict(name, result.reason in ends, f"{result.reason} after {result.seconds:.1f} s")


def first_that_holds(settings: Mapping[str, Any], rungs: tuple[str, ...]) -> tuple[str, list[Verdict]]:
    """The first rung on which every probe is contained. Raises SandboxRefused: which failed, and why."""
    failed = []
    for rung in rungs:
        reason = why_not(rung)
        if reason is None:
            try:
                verdicts = self_test(dict(settings) | {"rung": rung})
                escaped = [f"{verdict.probe} ({verdict.detail})" for verdict in verdicts if not verdict.contained]
                if not escaped:
                    return rung, verdicts
                reason = "not contained: " + ", ".join(escaped)
            except SandboxRefused as error:
                reason = str(error).removeprefix(f"{rung}: ")
        failed.append(f"{rung}: {reason}")
    raise SandboxRefused("no program is run, no wall holds here: " + "; ".join(failed))
