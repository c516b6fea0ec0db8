"""Latency tables: one JSON file per model and device, checked where they are loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from neustream.files import read_json, write_atomically
from neustream.latency import BatchLatency, ContextLatency, LatencyModel, MixedLatency, TokensLatency, levelled

KV_BLOCK = 16
"""Tokens in one block of keys and values (vLLM's default), where a table does not say."""
STEP_TOKENS = 2048
"""Prompt tokens that one prefill step may hold, where a table does not say: vLLM's default for these models."""
DEFAULT_ENGINE = "v0"
"""vLLM 0.5.4."""
OTHER_ENGINES = ("v1",)
"""Engines whose tables carry a mark in their name: today's vLLM."""
MIXED = "mixed"
"""The module of a file that holds `LatencyTable.mixed`, and its kind."""
SCHEMAS = (1, 2, 3)
"""1: as published. 2: a `context` module may carry a grid of its constant term over the batch size, and there may be a
module `mixed`, the steps in which pieces of prompts ride with decodes.
3: a `tokens` module may carry `per_prompt`, the seconds of each prompt beside those of its tokens."""


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
    mixed: MixedLatency | None = None
    """Steps in which pieces of prompts ride with decodes, where they were measured. In files it is a module."""

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

    @property
    def tensor_parallel(self) -> int:
        """How many devices share the model, as far as the file says; else 1."""
        devices = self.info.get("tensor_parallel")
        return devices if isinstance(devices, int) and devices > 0 else 1

    @property
    def kv_blocks(self) -> int | None:
        """How many blocks of keys and values the device(s) hold; None where the file does not say."""
        blocks = self.info.get("kv_blocks")
        return blocks if isinstance(blocks, int) and blocks > 0 else None

    @property
    def kv_block_size(self) -> int:
        """Tokens in one of these blocks."""
        tokens = self.info.get("kv_block_size")
        return tokens if isinstance(tokens, int) and tokens > 0 else KV_BLOCK

    def __getitem__(self, module: str) -> LatencyModel:
        try:
            return self.modules[module]
        except KeyError:
            known = ", ".join(self.modules)
            message = f"the table of {self.model} on {self.device} has no module {module!r}; it has {known}"
            raise TableError(message) from None

    def __contains__(self, module: str) -> bool:
        return module in self.modules


class TableName(NamedTuple):
    """What the name of a table's file says, without `.json`: `opt-13b`, `opt-13b.tp2`, `opt-13b.tp2.estimated`."""

    model: str
    tensor_parallel: int | None = None
    """Devices that share the model; None: the name does not say."""
    is_estimated: bool = False
    engine: str = DEFAULT_ENGINE
    """The engine that was measured, where a model has tables of several."""

    def __str__(self) -> str:
        return table_name(self.model, self.tensor_parallel or 1, estimated=self.is_estimated, engine=self.engine)

    @classmethod
    def parse(cls, name: str) -> TableName:
        """The parts of such a name; any string is one."""
        stem = name.removesuffix(".estimated")
        estimated = stem != name
        model, dot, text = stem.rpartition(".tp")
        devices = int(text) if model and dot and text.isdecimal() and int(text) > 0 else None
        model = model if devices else stem
        for engine in OTHER_ENGINES:
            if model.endswith(f".{engine}"):
                return cls(model.removesuffix(f".{engine}"), devices, estimated, engine)
        return cls(model, devices, estimated)


def table_name(model: str, tensor_parallel: int = 1, *, estimated: bool = False, engine: str = DEFAULT_ENGINE) -> str:
    """The name of a table's file without `.json`: the model, `.v1`, `.tp<N>` for more than one device, `.estimated`.

    `.v1` is there for tables of today's vLLM (`engine` `v1`); those of vLLM 0.5.4 (`v0`) have no such mark.
    """
    devices = f".tp{tensor_parallel}" if tensor_parallel > 1 else ""
    mark = f".{engine}" if engine != DEFAULT_ENGINE else ""
    return f"{model}{mark}{devices}{'.estimated' if estimated else ''}"


def table_path(folder: Path, device: str, name: str) -> Path:
    """Where the table of that name (see `table_name`) lies in a folder of tables."""
    return folder / device / f"{name}.json"


def table_names(folder: Path) -> list[tuple[str, str]]:
    """`(device, name)` of every table in a folder of tables, sorted."""
    return sorted((path.parent.name, path.name.removesuffix(".json")) for path in folder.glob("*/*.json"))


def find_table(folder: Path, device: str, model: str, tensor_parallel: int | None = None) -> LatencyTable:
    """The table of `model` on `device`: the measured one where there is one, else the estimated one.

    `model` is a model's name, or that of a table as messages offer it: `opt-13b.tp2`, `opt-13b.estimated`.
    `tensor_parallel` says for how many devices the table must have been made; None takes what the name says, and
    for a name that does not say, the table that carries the model's plain name. Raises TableError, naming what
    there is, where there is none.
    """
    exact = table_path(folder, device, model)
    asked = TableName.parse(model)
    devices = tensor_parallel or asked.tensor_parallel
    if devices is not None and asked.tensor_parallel not in (None, devices):
        raise TableError(f"{model} is for tensor parallelism {asked.tensor_parallel}, asked for is {devices}")
    if exact.exists() and devices in (None, asked.tensor_parallel):
        return load_table(exact, model=asked.model)
    plain = table_name(asked.model, engine=asked.engine)
    wide = table_name(asked.model, devices or 1, engine=asked.engine)
    for estimated in (True,) if asked.is_estimated else (False, True):
        for name in dict.fromkeys((wide, plain)):
            path = table_path(folder, device, table_name(name, estimated=estimated))
            if path.exists():
                table = load_table(path, model=asked.model)
                if devices is None or table.tensor_parallel == devices or (name == wide != plain):
                    return table
    for_devices = f" for tensor parallelism {devices}" if devices else ""
    known = ", ".join(f"{where}/{name}" for where, name in table_names(folder)) or "none"
    raise TableError(f"no table of {model}{for_devices} on {device} in {folder}; there are {known}")


def load_table(path: Path | str, *, model: str | None = None) -> LatencyTable:
    """Read and check a table; with `model` (or the name of one of its tables), it must be that model's.

    Raises TableError (file, field, value) for a missing or damaged file, an unknown schema, lengths that
    differ, or seconds that are not finite and positive: those that were measured, and those that a formula
    predicts in its range.
    """
    path = Path(path)
    data = read_json(path, TableError)
    try:
        table = parse_table(data)
    except TableError as error:
        raise TableError(f"{path}: {error}") from error
    if model is not None and table.model not in (model, TableName.parse(model).model):
        raise TableError(f"{path}: model is {table.model!r}, expected {TableName.parse(model).model!r}")
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
    most = data.get("max_prefill_tokens")
    tokens = most if isinstance(most, int) and most > 0 else STEP_TOKENS
    mixed = _parse_mixed(modules[MIXED]) if MIXED in modules else None
    steps = {name: fields for name, fields in modules.items() if name != MIXED}
    parsed = {name: _parse_module(f"modules.{name}", fields, tokens) for name, fields in steps.items()}
    prefill, decode = parsed.get("prefill"), parsed.get("decode")
    if isinstance(prefill, TokensLatency) and prefill.coef[2] < 0 and isinstance(decode, ContextLatency):
        parsed["prefill"] = replace(prefill, long_square=likely_square(prefill, decode))
    info = {key: value for key, value in data.items() if key not in ("schema", "model", "device", "modules")}
    return LatencyTable(data["model"], data["device"], parsed, info, mixed)


def likely_square(prefill: TokensLatency, decode: ContextLatency) -> float:
    """Seconds per square of a prompt's length, by what else the table says: for fits that found none.

    A decode step reads each token's keys and values, as a token of a prompt does with each that stands before it. The
    first takes the time of the memory, the second that of the arithmetic. Per weight, the two differ as a decode step
    and a token of a prompt do. A prompt of n tokens has n²/2 such pairs.
    """
    base = decode.base(1)
    return 0.5 * decode.slope * max(prefill.coef[1], 0.0) / base if base > 0 else 0.0


def _parse_module(where: str, fields: Any, step_tokens: int) -> LatencyModel:
    """`step_tokens`: up to how many prompt tokens a prefill's formula must make sense."""
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if kind == "batch":
        return BatchLatency(*_grid(where, fields, "batch", required=True))
    if kind == "tokens":
        coef = _numbers(f"{where}.coef", fields.get("coef"), length=3)
        if coef[0] <= 0 and coef[1] <= 0:
            raise TableError(f"{where}.coef is {list(coef)}, expected its first or second number above 0")
        (per_prompt,) = _numbers(f"{where}.per_prompt", [fields.get("per_prompt", 0.0)])
        if per_prompt < 0:
            raise TableError(f"{where}.per_prompt is {per_prompt}, expected seconds of at least 0")
        prefill = TokensLatency((coef[0], coef[1], coef[2]), *_grid(where, fields, "tokens"), per_prompt=per_prompt)
        _check_formula(where, prefill, step_tokens)
        return prefill
    if kind == "context":
        coef = _numbers(f"{where}.coef", fields.get("coef"), length=2)
        if coef[0] <= 0:
            raise TableError(f"{where}.coef[0] is {coef[0]}, expected seconds above 0")
        if coef[1] < 0:
            raise TableError(f"{where}.coef[1] is {coef[1]}, expected at least 0: no context makes a step shorter")
        return ContextLatency((coef[0], coef[1]), *_grid(where, fields, "batch"))
    raise TableError(f"{where}.kind is {kind!r}, known are 'batch', 'tokens', 'context'")


def _parse_mixed(fields: Any) -> MixedLatency:
    where = f"modules.{MIXED}"
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if kind != MIXED:
        raise TableError(f"{where}.kind is {kind!r}, expected {MIXED!r}")
    coef = _numbers(f"{where}.coef", fields.get("coef"), length=5)
    for i, value in enumerate(coef):
        if value < 0:
            raise TableError(f"{where}.coef[{i}] is {value}, expected at least 0: nothing makes a step shorter")
    tokens, seconds = _grid(where, fields, "tokens")
    if not tokens and coef[0] + coef[1] <= 0:
        raise TableError(f"{where}.coef is {list(coef)}, expected its first or second number above 0")
    base, per_token, square, per_decode, per_context = coef
    return MixedLatency(base, per_token, square, per_decode, per_context, tokens, levelled(seconds))


def _check_formula(where: str, prefill: TokensLatency, step_tokens: int) -> None:
    """Raises TableError if the formula gives a step of 1 to `step_tokens` tokens no time. A grid stands before it.

    The sum of squares lies between that of prompts of one token each and that of a single prompt. The lesser of the
    two lines over the tokens is straight or bent downwards, so that its ends tell.
    """
    if prefill.tokens:
        return
    for work in (1, step_tokens):
        for squares in (work, work * work):
            seconds = prefill.formula(work, squares)
            if seconds <= 0:
                raise TableError(
                    f"{where}.coef is {list(prefill.coef)}, expected seconds above 0 for each step of up to "
                    f"{step_tokens} tokens; {work} tokens take {seconds:.4g}"
                )


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
            if model.per_prompt:
                schema = 3
                modules[name]["per_prompt"] = model.per_prompt
        elif isinstance(model, ContextLatency):
            modules[name] = {"kind": "context", "coef": list(model.coef)}
            if model.batch:
                schema = max(schema, 2)
                modules[name] |= {"batch": list(model.batch), "seconds": list(model.seconds)}
        else:
            raise TypeError(f"module {name!r} has a latency model without a file form: {type(model).__name__}")
    if table.mixed is not None:
        schema = max(schema, 2)
        modules[MIXED] = _mixed_to_json(table.mixed)
    return {"schema": schema, "model": table.model, "device": table.device, **table.info, "modules": modules}


def _mixed_to_json(mixed: MixedLatency) -> dict[str, Any]:
    coef = [mixed.base, mixed.per_token, mixed.square, mixed.per_decode, mixed.per_context]
    fields: dict[str, Any] = {"kind": MIXED, "coef": coef}
    if mixed.tokens:
        fields |= {"tokens": list(mixed.tokens), "seconds": list(mixed.seconds)}
    return fields


def save_table(table: LatencyTable, path: Path) -> None:
    """Write the table, all or nothing; what is written passes `parse_table`."""
    data = table_to_json(table)
    parse_table(data)
    write_atomically(path, json.dumps(data, indent=1) + "\n")
