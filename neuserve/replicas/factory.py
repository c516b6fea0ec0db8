"""Objects that are made where they live: a dotted path and the arguments of what it names."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Factory:
    """`module:function` with keyword arguments; only this crosses to the process that makes the object.

    Raises ValueError, one line, for what is no such path and for a module that is not there. Nothing is imported but
    the packages around the module.
    """

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module, _, name = self.path.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
            raise ValueError(f"expected a path such as package.module:function, got {self.path!r}")
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise ValueError(f"{self.path}: there is no module {module!r}")

    def make(self, **more: Any) -> Any:
        """Call it. Raises ValueError where the module has no such name, and whatever the function raises."""
        module, _, name = self.path.partition(":")
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            if not hasattr(target, part):
                raise ValueError(f"{self.path}: module {module!r} has no {name!r}")
            target = getattr(target, part)
        return target(**self.options, **more)
