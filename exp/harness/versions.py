"""What was run, and with which versions: for the summary."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import shutil
import subprocess
import sys

from neustream.cli.paths import ROOT


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, of these packages (those that are installed), and the commit of this repository."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if shutil.which("git") is not None:
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
        if commit.returncode == 0:
            found["commit"] = commit.stdout.strip()
    return found


def command_line() -> str:
    """The command, as it could be typed again."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {module.name.removesuffix('.__main__')}" if module is not None else sys.argv[0]
    return shlex.join([*shlex.split(program), *sys.argv[1:]])
