"""Hostile programs as text: what the self-test and the tests hand to a sandbox."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "hostile"
HELPERS = ("every", "see", "opens", "call", "call_numbers")

RUNNER = """
planted.update({planted!r})
for attempt in ({names}):
    try:
        attempt()
    except BaseException as error:
        print("contained", attempt.__name__, type(error).__name__, flush=True)
    else:
        print("ESCAPED", attempt.__name__, flush=True)
"""

FORBIDDEN = """
ptrace 101 117; process_vm_readv 310 270; process_vm_writev 311 271; mount 165 40; umount2 166 39; pivot_root 155 41
chroot 161 51; unshare 272 97; setns 308 268; bpf 321 280; perf_event_open 298 241; keyctl 250 219; add_key 248 217
request_key 249 218; userfaultfd 323 282; io_uring_setup 425 425; io_uring_enter 426 426; kexec_load 246 104
init_module 175 105; finit_module 313 273; delete_module 176 106; reboot 169 142; open_by_handle_at 304 265
name_to_handle_at 303 264; pidfd_open 434 434; pidfd_getfd 438 438; pidfd_send_signal 424 424; quotactl 179 60
swapon 167 224; swapoff 168 225; acct 163 89; personality 135 92; kcmp 312 272; syslog 103 116; settimeofday 164 170
clock_settime 227 112; sethostname 170 161; setpriority 141 140; ioprio_set 251 30; sched_setscheduler 144 119
sched_setaffinity 203 122; shmget 29 194; msgget 68 186; semget 64 190; mq_open 240 180; memfd_create 319 279
memfd_secret 447 447; socket 41 198; socketpair 53 199; tkill 200 130; rt_sigqueueinfo 129 138
process_madvise 440 440; move_pages 279 239; migrate_pages 256 238; fanotify_init 300 262; inotify_init1 294 26
setuid 105 146; setresuid 117 147; setgroups 116 159; capset 126 91; mknodat 259 33; linkat 265 37; symlinkat 266 36
fchownat 260 54; setxattr 188 5; open_tree 428 428; move_mount 429 429; fsopen 430 430; fsmount 432 432
execve 59 221; execveat 322 281; seccomp 317 277; landlock_create_ruleset 444 444; openat2 437 437; clone3 435 435
truncate 76 45; vhangup 153 58; setsid 112 157; prctl 157 167
"""
"""System calls that no program may make, with their numbers on x86_64 and aarch64."""


def forbidden_calls(machine: str) -> dict[str, int]:
    """The forbidden calls' numbers on this processor. Raises KeyError for one that is not known."""
    column = {"x86_64": 1, "aarch64": 2}[machine]
    rows = [row.split() for row in FORBIDDEN.replace("\n", ";").split(";") if row.strip()]
    return {row[0]: int(row[column]) for row in rows}


def _functions(module: str) -> list[str]:
    """Names of a module's hostile functions; the module is read, not imported."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name not in HELPERS]


ATTEMPTS = {name: module for module in ("files", "processes") for name in _functions(module)}
"""Attempts to get out, with the module they stand in."""
FLOODS = tuple(_functions("floods"))
"""Programs that try to use up the machine."""


def attempts(module: str, planted: Mapping[str, Any], *only: str) -> str:
    """A program that makes a module's attempts, or these; prints `contained NAME …` or `ESCAPED NAME` for each."""
    names = only or [name for name, home in ATTEMPTS.items() if home == module]
    return _source(module) + RUNNER.format(planted=dict(planted), names="".join(f"{name}, " for name in names))


def flood(name: str) -> str:
    """One of the programs that try to use up the machine."""
    return f"{_source('floods')}\n{name}()\n"


def _source(module: str) -> str:
    return (FOLDER / f"{module}.py").read_text()
