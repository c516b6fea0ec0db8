"""What a profile was asked for, checked where it is made and before anything heavy is imported."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from neusim.profiling.registry import Target, find_target
from neustream.catalog.machine import DEVICES, device_slug, local_device
from neustream.cli.paths import TABLES
from neustream.tables import DEFAULT_ENGINE, OTHER_ENGINES, table_name, table_path

ENGINES = (DEFAULT_ENGINE, *OTHER_ENGINES)
ENGINE_ALIASES = {"vllm": "v1"}
DTYPES = ("auto", "float32", "bfloat16", "float16")


class SettingsError(ValueError):
    """Something was asked for that cannot be; one line that says what, and what can."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One profile: of which model, on what, how thoroughly, and where the table goes."""

    model: str
    """As given: a known name or a local folder."""
    name: str
    """The `model` field of the table, and its file's name."""
    device: str
    """`cpu` or `cuda`."""
    slug: str
    """The `device` field of the table: `h200`, `cpu-amd-epyc-2`."""
    dtype: str
    """One of DTYPES; what `auto` means is the profiler's business."""
    tp: int
    """Tensor parallelism: over how many devices a model is spread."""
    quick: bool
    """A coarser grid and fewer repeats."""
    layers: tuple[int, int] | None
    """Two depths to measure instead of the whole model; None: decide by memory."""
    repeats: int | None
    """Visits of each point; None: the profiler's default."""
    out: Path
    """The table's file."""
    progress: bool = True
    """Whether to draw a progress bar."""
    engine: str = DEFAULT_ENGINE
    """Of a language model: `v0`, vLLM 0.5.4, or `v1`, today's."""


def make_settings(
    model: str,
    *,
    device: str | None = None,
    dtype: str = "auto",
    tp: int = 1,
    quick: bool = False,
    layers: str | None = None,
    repeats: int | None = None,
    out: Path | str | None = None,
    progress: bool = True,
    engine: str = DEFAULT_ENGINE,
) -> tuple[Settings, Target]:
    """Check what was asked for and fill in the rest. Raises SettingsError; loads no framework.

    `engine` is `v0` or `v1`, which may be written `vllm`. `device` defaults to cuda where there is an NVIDIA GPU.
    `layers` is two depths, as `2,4`. `out` defaults to `neusim/tables/<device>/<model>.json`, with `.v1` and `.tp<N>`
    before `.json` for the engine v1 and where tp > 1.
    """
    try:
        target = find_target(model)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    if device is not None and device not in DEVICES:
        raise SettingsError(f"unknown device {device!r}; there are {', '.join(DEVICES)}")
    engine = ENGINE_ALIASES.get(engine, engine)
    if engine not in ENGINES:
        raise SettingsError(f"unknown engine {engine!r}; there are {', '.join(ENGINES)}")
    if engine != DEFAULT_ENGINE and target.kind != "llm":
        raise SettingsError(f"--engine is about language models, and {target.name} is none")
    if dtype not in DTYPES:
        raise SettingsError(f"unknown dtype {dtype!r}; there are {', '.join(DTYPES)}")
    if tp < 1:
        raise SettingsError(f"--tp must be at least 1, got {tp}")
    if repeats is not None and repeats < 1:
        raise SettingsError(f"--repeats must be at least 1, got {repeats}")
    depths = None if layers is None else parse_layers(layers)
    kind = device or local_device()
    try:
        slug = device_slug(kind)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    path = Path(out) if out is not None else table_path(TABLES, slug, table_name(target.name, tp, engine=engine))
    check_writable(path)
    asked = Settings(model, target.name, kind, slug, dtype, tp, quick, depths, repeats, path, progress, engine)
    return asked, target


def parse_layers(text: str) -> tuple[int, int]:
    """`"2,4"` as (2, 4). Raises SettingsError unless it is two rising whole numbers from 1."""
    parts = text.split(",")
    if len(parts) == 2 and all(part.strip().isdecimal() for part in parts):
        shallow, deep = int(parts[0]), int(parts[1])
        if 1 <= shallow < deep:
            return shallow, deep
    raise SettingsError(f"--layers must be two rising numbers of layers, as 2,4; got {text!r}")


def check_writable(path: Path) -> None:
    """Raises SettingsError unless a file can be written at `path`; its folders need not exist yet."""
    if path.is_dir():
        raise SettingsError(f"--out {path} is a folder; give a file")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        message = f"--out {path} cannot be written: {folder}: {error.strerror}"
        raise SettingsError(message) from error
