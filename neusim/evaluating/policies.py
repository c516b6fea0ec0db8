"""Policies as a comparison names them: one that is registered, or any builder by its dotted path; with options."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from neustream.policies import make_policy
from neustream.policies.base import PolicyContext, StepPolicy
from neustream.tables import LatencyTable

Build = Callable[..., StepPolicy]
"""Called with the table, a `PolicyContext`, and the options as keywords: what `POLICIES` has too."""


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy and its options. `name` is that of a registered policy, or `package.module:builder`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What rows call it: the name, and the options where there are any."""
        return ":".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def make(self, table: LatencyTable) -> StepPolicy:
        """A fresh policy for a device of this table.

        Raises ValueError, one line, for an unknown name or option, or a value out of range.
        """
        module, separator, attribute = self.name.partition(":")
        if not separator:
            return make_policy(self.name, table, **self.options)
        try:
            build: Build = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"policy {self.name!r}: cannot be imported ({error})") from error
        return build(table, PolicyContext(), **self.options)


def parse_policy(text: str) -> PolicySpec:
    """A policy from `NAME`, `NAME:option=value:…` or `package.module:builder:option=value:…`.

    Values are numbers, `true`, `false`, or text. Raises ValueError, one line, for anything else.
    """
    parts = text.split(":")
    num_names = 2 if "." in parts[0] else 1
    name, items = ":".join(parts[:num_names]), parts[num_names:]
    options = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise ValueError(f"policy {text!r}: expected option=value after {name!r}, got {item!r}")
        options[key] = parse_value(value)
    return PolicySpec(name, options)


def parse_value(text: str) -> Any:
    """An option's value: a number, `true`, `false`, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
