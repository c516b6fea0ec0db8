"""The frame of every experiment program: arguments, table, run folder, loading, settings. A `Kind` brings the rest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from exp.harness.folder import RunWriter, create_run_folder
from exp.harness.options import Options
from exp.harness.report import goodput_columns
from exp.harness.runner import Bench, run_settings
from exp.harness.settings import Setting
from exp.harness.tables import profile_table, read_table, table_file, table_header
from exp.harness.versions import command_line, versions
from neustream.cli.arguments import BadInput, Parser, RunFailed, exit_code_for
from neustream.tables import LatencyTable

Own = TypeVar("Own", bound=Options)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a run serves: its settings, the requests of each, and the capacity that its rates are measured by."""

    settings: Sequence[Setting]
    num_requests: int
    capacity: float
    """Requests per second that the device sustains, by its latency table (docs/metrics.md)."""


def _nothing(options: Options) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Kind(Generic[Own]):
    """A kind of model: its flags, its requests, and a driver that serves them. Only `load` may be slow."""

    name: str
    """The program is `python -m exp.<name>`; the summary's `kind`."""
    description: str
    epilog: str
    unit: str
    """What a request delivers: `token` or `image`."""
    best_by: str
    """The figure by which the best of a setting's repeats is chosen."""
    packages: Sequence[str]
    """Whose versions the summary keeps."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Adds its flags, the common ones among them."""
    options: Callable[[argparse.Namespace], Own]
    """Checks the command line and fills in what depends on the machine. Raises BadInput."""
    modules: Callable[[Own], Sequence[str]]
    """The modules that its latency table must have."""
    default_dtype: Callable[[Own], str]
    """The data type where neither the user nor the table names one."""
    scope: Callable[[Own, LatencyTable], Scope]
    """The settings of the run."""
    header: Callable[[Own], Mapping[str, Any]]
    """What the summary says of the run besides what it says of every one."""
    load: Callable[[Own, LatencyTable, Path, Scope], Bench]
    """Loads the model, warmed up, given its table and the table's file. Raises BadInput, RunFailed, or whatever."""
    check_files: Callable[[Own], None] = _nothing
    """Checks what is read and written besides tables and the run. Raises BadInput."""


def make_parser(kind: Kind[Any]) -> Parser:
    """The command line of a kind's program."""
    parser = Parser(prog=f"exp.{kind.name}", description=kind.description, epilog=kind.epilog)
    kind.add_arguments(parser)
    return parser


def run(kind: Kind[Own], options: Own) -> int:
    """Check everything, then load the model and measure; returns the exit code. Raises BadInput, RunFailed."""
    common = options.common
    path, modules = table_file(options), kind.modules(options)
    found = read_table(path, options, modules) if path.exists() or common.table else None
    kind.check_files(options)
    with create_run_folder(common.out, common.policy, common.model) as folder:
        try:
            if found is None:
                profile_table(path, options)
            table = found or read_table(path, options, modules)
            if common.dtype in (None, "auto"):
                dtype = table.info.get("dtype", kind.default_dtype(options))
                options = replace(options, common=replace(common, dtype=dtype))
            scope = kind.scope(options, table)
            head = header(kind, options, table, path, scope)
            bench = load(kind, options, table, path, scope, folder)
            columns = goodput_columns(list(scope.settings[0].values), kind.unit)
            return run_settings(bench, scope.settings, folder, head, best_by=kind.best_by, columns=columns)
        finally:
            folder.remove_if_empty()


def header(kind: Kind[Own], options: Own, table: LatencyTable, path: Path, scope: Scope) -> dict[str, Any]:
    """What the summary says of the run besides its figures."""
    common = options.common
    return {
        "kind": kind.name,
        "model": common.model,
        "policy": common.policy,
        "device": common.slug,
        "dtype": common.dtype,
        **table_header(path, table),
        "capacity": scope.capacity,
        "requests": scope.num_requests,
        **kind.header(options),
        "taken_at": "engine",
        "versions": versions(*kind.packages),
        "command": command_line(),
    }


def load(kind: Kind[Own], options: Own, table: LatencyTable, path: Path, scope: Scope, folder: RunWriter) -> Bench:
    """The model, ready to serve. Raises BadInput or RunFailed, with the trace kept in the run's folder."""
    common = options.common
    print(f"loading {common.model} ({common.dtype}) on {common.slug} …", file=sys.stderr, flush=True)
    try:
        return kind.load(options, table, path, scope)
    except (BadInput, RunFailed):
        raise
    except Exception as error:
        where = folder.write_error(error)
        raise RunFailed(f"cannot load {common.model}: {type(error).__name__}: {error}; see {where}") from error


def main(kind: Kind[Any], arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = make_parser(kind)
    given = parser.parse_args(arguments)
    return exit_code_for(parser, lambda: run(kind, kind.options(given)))
