"""Latency tables: one JSON file per model and device, checked where they are loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neustream.files import read_json, write_atomically
from neustream.latency import BatchLatency, ContextLatency, LatencyModel, TokensLatency

SCHEMAS = (1, 2)
"""1: as published. 2: a `context` module may carry a grid of its constant term over the batch size."""


class TableError(ValueError):
    """A table that cannot be used; the message names file, field and value."""


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """The latency models of one model on one device; `table["decode"].predict(shape)` gives seconds."""

    model: str
    device: str
    modules: Mapping[str, LatencyModel]
    info: Mapping[str, Any] = field(default_factory=dict)
    """Every other field of the file: dtype, source, tensor_parallel, layers_measured, estimated, …"""

    @property
    def is_estimated(self) -> bool:
        """Whether it was computed from a device's published rates rather than measured."""
        return bool(self.info.get("estimated"))

    @property
    def origin(self) -> str:
        """One word or two for outputs: how the seconds came about."""
        if self.is_estimated:
            return "estimated"
        return "measured by layers" if self.info.get("layers_measured") else "measured"

    def __getitem__(self, module: str) -> LatencyModel:
        try:
            return self.modules[module]
        except KeyError:
            known = ", ".join(self.modules)
            message = f"the table of {self.model} on {self.device} has no module {module!r}; it has {known}"
            raise TableError(message) from None

    def __contains__(self, module: str) -> bool:
        return module in self.modules


def table_path(folder: Path, device: str, model: str) -> Path:
    """Where the table of `model` on `device` lies in a folder of tables."""
    return folder / device / f"{model}.json"


def find_table(folder: Path, device: str, model: str) -> LatencyTable:
    """The table of `model` on `device`: the measured one where there is one, else the estimated one.

    Raises TableError, naming what there is, where there is neither.
    """
    for path in (table_path(folder, device, model), table_path(folder, device, f"{model}.estimated")):
        if path.exists():
            return load_table(path, model=model)
    known = sorted(f"{path.parent.name}/{path.name.split('.json')[0]}" for path in folder.glob("*/*.json"))
    raise TableError(f"no table of {model} on {device} in {folder}; there are {', '.join(known) or 'none'}")


def load_table(path: Path | str, *, model: str | None = None) -> LatencyTable:
    """Read and check a table; with `model`, it must be that model's.

    Raises TableError (file, field, value) for a missing or damaged file, an unknown schema, lengths that
    differ, or seconds that are not finite and positive.
    """
    path = Path(path)
    data = read_json(path, TableError)
    try:
        table = parse_table(data)
    except TableError as error:
        raise TableError(f"{path}: {error}") from error
    if model is not None and table.model != model:
        raise TableError(f"{path}: model is {table.model!r}, expected {model!r}")
    return table


def parse_table(data: Any) -> LatencyTable:
    """A table from its JSON form. Raises TableError (field, value)."""
    if not isinstance(data, dict):
        raise TableError(f"expected an object, got {type(data).__name__}")
    if data.get("schema") not in SCHEMAS:
        raise TableError(f"schema is {data.get('schema')!r}, known are {', '.join(map(str, SCHEMAS))}")
    for name in ("model", "device"):
        if not isinstance(data.get(name), str):
            raise TableError(f"{name} is {data.get(name)!r}, expected a string")
    modules = data.get("modules")
    if not isinstance(modules, dict) or not modules:
        raise TableError("modules is missing or empty")
    parsed = {name: _parse_module(f"modules.{name}", fields) for name, fields in modules.items()}
    info = {key: value for key, value in data.items() if key not in ("schema", "model", "device", "modules")}
    return LatencyTable(data["model"], data["device"], parsed, info)


def _parse_module(where: str, fields: Any) -> LatencyModel:
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if kind == "batch":
        return BatchLatency(*_grid(where, fields, "batch", required=True))
    if kind == "tokens":
        coef = _numbers(f"{where}.coef", fields.get("coef"), length=3)
        if coef[0] <= 0 and coef[1] <= 0:
            raise TableError(f"{where}.coef is {list(coef)}, expected its first or second number above 0")
        return TokensLatency((coef[0], coef[1], coef[2]), *_grid(where, fields, "tokens"))
    if kind == "context":
        coef = _numbers(f"{where}.coef", fields.get("coef"), length=2)
        if coef[0] <= 0:
            raise TableError(f"{where}.coef[0] is {coef[0]}, expected seconds above 0")
        return ContextLatency((coef[0], coef[1]), *_grid(where, fields, "batch"))
    raise TableError(f"{where}.kind is {kind!r}, known are 'batch', 'tokens', 'context'")


def _grid(
    where: str, fields: Mapping[str, Any], axis: str, *, required: bool = False
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    if axis not in fields and "seconds" not in fields and not required:
        return (), ()
    xs = _numbers(f"{where}.{axis}", fields.get(axis))
    ys = _numbers(f"{where}.seconds", fields.get("seconds"), length=len(xs))
    for i, x in enumerate(xs):
        if x != int(x) or x < 1 or (i and x <= xs[i - 1]):
            raise TableError(f"{where}.{axis}[{i}] is {x:g}, expected rising whole numbers from 1")
    for i, y in enumerate(ys):
        if y <= 0:
            raise TableError(f"{where}.seconds[{i}] is {y}, expected a number above 0")
    return tuple(int(x) for x in xs), ys


def _numbers(where: str, value: Any, *, length: int | None = None) -> tuple[float, ...]:
    if not isinstance(value, list) or not value:
        raise TableError(f"{where} is {value!r}, expected a list of numbers")
    if length is not None and len(value) != length:
        raise TableError(f"{where} has {len(value)} entries, expected {length}")
    for i, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
            raise TableError(f"{where}[{i}] is {item!r}, expected a finite number")
    return tuple(float(item) for item in value)


def table_to_json(table: LatencyTable) -> dict[str, Any]:
    """The JSON form of a table, as `parse_table` reads it."""
    modules: dict[str, Any] = {}
    schema = 1
    for name, model in table.modules.items():
        if isinstance(model, BatchLatency):
            modules[name] = {"kind": "batch", "batch": list(model.batch), "seconds": list(model.seconds)}
        elif isinstance(model, TokensLatency):
            modules[name] = {"kind": "tokens", "coef": list(model.coef)}
            if model.tokens:
                modules[name] |= {"tokens": list(model.tokens), "seconds": list(model.seconds)}
        elif isinstance(model, ContextLatency):
            modules[name] = {"kind": "context", "coef": list(model.coef)}
            if model.batch:
                schema = 2
                modules[name] |= {"batch": list(model.batch), "seconds": list(model.seconds)}
        else:
            raise TypeError(f"module {name!r} has a latency model without a file form: {type(model).__name__}")
    return {"schema": schema, "model": table.model, "device": table.device, **table.info, "modules": modules}


def save_table(table: LatencyTable, path: Path) -> None:
    """Write the table, all or nothing; what is written passes `parse_table`."""
    data = table_to_json(table)
    parse_table(data)
    write_atomically(path, json.dumps(data, indent=1) + "\n")
