"""`neustream COMMAND …`: one name in front of every command.

A package adds a command by an entry point in the group `neustream.commands`: its name, and a function that reads
`sys.argv` and returns the exit code. Nothing here knows which commands there are.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from neustream.cli.arguments import COMMON_NAME

GROUP = "neustream.commands"


def find_commands() -> dict[str, EntryPoint]:
    """What is installed, by name, in alphabetical order."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def summary(command: EntryPoint) -> str:
    """The first sentence of the docstring of the command's module, which is read and not imported."""
    try:
        spec = find_spec(command.module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        return "is not there; `bash install.sh` brings the list up to date"
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    plain = re.sub(r"^`[^`]*`: |: `[^`]*`(?=\.?$)|\.$", "", paragraph)
    return plain[:1].upper() + plain[1:].removesuffix(".")


def usage(commands: dict[str, EntryPoint]) -> str:
    """The list of commands, a line each."""
    lines = [f"  {name:10} {summary(command)}" for name, command in commands.items()]
    return "\n".join([f"usage: {COMMON_NAME} COMMAND …    (COMMAND --help lists its flags)", "", *lines])


def refuse(message: str) -> int:
    """Say in one line what was wrong; returns the exit code for it."""
    print(f"{COMMON_NAME}: {message}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = find_commands()
    if not commands:
        return refuse("no commands are installed; `bash install.sh` installs them")
    if not arguments:
        return refuse(f"name a command; there are {', '.join(commands)}")
    name, *rest = arguments
    if name in ("--help", "-h", "help"):
        print(usage(commands))
        return 0
    if name not in commands:
        return refuse(f"unknown command {name!r}; there are {', '.join(commands)}")
    sys.argv = [f"{COMMON_NAME} {name}", *rest]
    try:
        run = commands[name].load()
    except ImportError as error:
        return refuse(f"{name} cannot be loaded: {error}; `bash install.sh` installs what it needs")
    code: int | None = run()
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
