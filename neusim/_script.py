"""What a script of this repository does first: it finds the code of its checkout, and a Python that can run it.

Two things would be in its way. A script's own folder stands first on `sys.path`; in this one, profile.py would hide
the standard library's `profile` from `cProfile`, and so from torch. And in a plain shell, `python` is not that of the
environment which `install.sh` made, and lacks what it has.

Imports nothing but the standard library, and parses on older Pythons, which it can then leave.
"""

from __future__ import annotations

import os
import shlex
import sys
from types import TracebackType
from typing import NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
ENVIRONMENT = os.path.join(ROOT, ".venv")
TODAYS = os.path.join(ROOT, ".venv-v1")
"""The environment of `--engine v1`: today's vLLM needs other packages than vLLM 0.5.4."""
TODAYS_NAMES = ("v1", "vllm")
OLDEST = (3, 11)
STARTED_AGAIN = "NEUSTREAM_STARTED_AGAIN"
"""Holds the id of the process that a script has already started again, which keeps its id: it does so once."""


def prepare(script: str) -> None:
    """Let the checkout's packages be imported first, and let a module that is missing lead to the environment.

    `script` is the started file. Nothing else changes where every import works, whatever Python that is.
    """
    folder = os.path.dirname(os.path.realpath(script))
    others = [entry for entry in sys.path if os.path.realpath(entry or ".") not in (folder, ROOT)]
    sys.path[:] = [ROOT, *others]
    name = os.path.basename(script)
    if name == "__main__.py":
        name = os.path.relpath(folder, ROOT).replace(os.sep, ".")
    if sys.version_info < OLDEST:
        go_on_in_environment(name, f"is older than Python {OLDEST[0]}.{OLDEST[1]}")
    if _chosen() == TODAYS and not _is_in(TODAYS):
        go_on_in_environment(name, "has not today's vLLM")

    process = os.getpid()

    def handle(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if missing and not _is_ours(missing) and os.getpid() == process:  # else it is a process that was forked off
            go_on_in_environment(name, f"has no module {missing}")
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = handle


def go_on_in_environment(name: str, reason: str) -> NoReturn:
    """Start the same command line again with the environment's Python, or say in one line how to make it.

    `reason` says what is wrong with the Python that runs.
    """
    environment = _chosen()
    python = os.path.join(environment, "bin", "python")
    is_there_already = _is_in(environment)
    was_started_again = os.environ.pop(STARTED_AGAIN, "") == str(os.getpid())
    if os.access(python, os.X_OK) and not is_there_already and not was_started_again:
        os.environ[STARTED_AGAIN] = str(os.getpid())
        sys.stdout.flush()
        try:
            os.execv(python, [python, *_command_line()])
        except OSError as error:
            reason += f", and {python} cannot be run ({error.strerror})"
    engine = " --engine v1" if environment == TODAYS else ""
    remedy = f"`bash {shlex.quote(os.path.join(ROOT, 'install.sh'))}{engine}` makes an environment for it"
    print(f"{name}: {sys.executable} {reason}; {remedy}", file=sys.stderr)
    sys.exit(2)


def _is_in(environment: str) -> bool:
    return os.path.realpath(sys.prefix) == os.path.realpath(environment)


def _chosen() -> str:
    """The environment that the command line needs: the last `--engine` says so, as for argparse."""
    arguments, engine = sys.argv[1:], ""
    for i, argument in enumerate(arguments):
        if argument == "--engine" and i + 1 < len(arguments):
            engine = arguments[i + 1]
        elif argument.startswith("--engine="):
            engine = argument.partition("=")[2]
    return TODAYS if engine in TODAYS_NAMES else ENVIRONMENT


def _is_ours(module: str) -> bool:
    """Whether a module is the checkout's: that a part of it is missing is no fault of the Python that runs."""
    return os.path.isdir(os.path.join(ROOT, module))


def _command_line() -> list[str]:
    """What followed the name of this Python: options, then `-m` and a module or a script's path, then arguments."""
    return list(getattr(sys, "orig_argv", ["", *sys.argv])[1:])
