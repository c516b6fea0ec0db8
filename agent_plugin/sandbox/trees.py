"""What an interpreter must be able to read: itself, its packages, the system's libraries, fonts and time zones."""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/fonts", "/usr/share/zoneinfo")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/etc/fonts")
PACKAGES = ("matplotlib", "numpy", "PIL")
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Trees:
    """Where the interpreter and its packages lie."""

    executable: str
    paths: tuple[str, ...]
    """The interpreter's search path, without this repository."""
    readable: tuple[str, ...]
    """Everything that it reads; only what exists."""

    @property
    def closed(self) -> str | None:
        """A folder above the trees that only its owner may enter, or None."""
        for path in self.readable:
            for folder in Path(path).parents:
                if not folder.stat().st_mode & 0o001:
                    return str(folder)
        return None


def find_trees() -> Trees:
    """The running interpreter's. Raises ModuleNotFoundError, naming the package, where one is missing."""
    homes = []
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"the sandbox needs the package {package}", name=package)
        homes.append(str(Path(spec.origin).resolve().parent.parent))
    standard = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    base = Path(sys.base_prefix).resolve()
    dynamic = str(base / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "lib-dynload")
    packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *homes]
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    paths = _existing([*standard, dynamic, *packages])
    own = [str(Path(__file__).resolve().parent), str(ROOT / "agent_plugin" / "__init__.py")]
    readable = _existing([executable, str(base / "lib"), *paths, *own, *SYSTEM, *SYSTEM_FILES])
    return Trees(executable, paths, readable)


def _existing(paths: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for path in paths if os.path.exists(path)))
