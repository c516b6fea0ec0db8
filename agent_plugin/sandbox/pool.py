"""The sandbox as callers see it: seats for programs, behind the strongest wall that holds here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict
from types import TracebackType
from typing import Any

from agent_plugin.sandbox.bwrap import find_bwrap
from agent_plugin.sandbox.client import Keeper
from agent_plugin.sandbox.jobs import check_names
from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.result import ToolResult
from agent_plugin.sandbox.selftest import RUNGS, Verdict, first_that_holds
from agent_plugin.sandbox.trees import find_trees

WARNING = "no sandbox: this program could read, change and send whatever its user can"


class Sandbox:
    """Runs programs in single-use interpreters that have matplotlib imported, a bounded number at a time.

    `rung`: `auto` (the strongest that passes its self-test), `bwrap`, `landlock`, or `none` (no wall; results warn).
    `seats`: programs at once, by default the processors of this process. `warm`: interpreters kept ready beside them.
    `preload`: whether matplotlib is imported ahead. `folder`: where job folders are made, by default the temporary one.

    Raises SandboxRefused, with one line that says which rungs failed and why, and ValueError for bad arguments.
    Thread-safe. Use it as a context manager, or `close` it: then no process and no file of it is left.
    """

    def __init__(
        self,
        rung: str = "auto",
        *,
        seats: int | None = None,
        warm: int | None = None,
        limits: Limits | None = None,
        preload: bool = True,
        folder: str | None = None,
    ) -> None:
        known = ("auto", *RUNGS, "none")
        if rung not in known:
            raise ValueError(f"rung is {rung!r}, known are {', '.join(known)}")
        self.seats = len(os.sched_getaffinity(0)) if seats is None else seats
        warm = self.seats if warm is None else warm
        if self.seats < 1 or warm < 1:
            raise ValueError(f"seats is {self.seats} and warm {warm}, expected at least 1")
        if folder is not None and not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"folder {folder!r} is not there, or not writable")
        self.limits = limits or Limits()
        settings: dict[str, Any] = {
            "limits": self.limits.to_json(),
            "preload": preload,
            "trees": asdict(find_trees()),
            "bwrap": find_bwrap() or "",
            "folder": folder,
            "seats": self.seats,
            "warm": warm,
        }
        self.verdicts: list[Verdict] = []
        """What the self-test showed of the rung in use; empty for `none`."""
        if rung != "none":
            rung, self.verdicts = first_that_holds(settings, RUNGS if rung == "auto" else (rung,))
        self.rung = rung
        self.warning = WARNING if rung == "none" else None
        self._keeper = Keeper(settings | {"rung": rung}, warning=self.warning)

    def submit(
        self, code: str, files: Mapping[str, bytes] | None = None, *, wall: float | None = None
    ) -> Future[ToolResult]:
        """Hand over a program; the future gives its result, or SandboxRefused if interpreters cannot start any more.

        `files` are put beside it, by relative path. `wall`: seconds, if fewer than the limit. Raises ValueError.
        """
        files = dict(files or {})
        check_names(files)
        if wall is not None and not wall > 0:
            raise ValueError(f"wall is {wall} seconds, expected more than 0")
        return self._keeper.submit(code, files, wall)

    def run(self, code: str, files: Mapping[str, bytes] | None = None, *, wall: float | None = None) -> ToolResult:
        """Run a program and wait for its result; as `submit`."""
        return self.submit(code, files, wall=wall).result()

    async def run_async(
        self, code: str, files: Mapping[str, bytes] | None = None, *, wall: float | None = None
    ) -> ToolResult:
        """Run a program without blocking the event loop; if the task is cancelled, so is the program."""
        future = self.submit(code, files, wall=wall)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self.cancel(future)
            raise

    def cancel(self, future: Future[ToolResult]) -> None:
        """End a program that was submitted; its result says `cancelled` unless it had ended."""
        self._keeper.cancel(future)

    @property
    def keeper_pid(self) -> int:
        """The process under which all programs run."""
        return self._keeper.pid

    def close(self) -> None:
        """End every program; returns when nothing of them is left. What was still running gives SandboxRefused."""
        self._keeper.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
