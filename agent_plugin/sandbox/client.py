"""The caller's end of one keeper: starts it, sends programs, resolves futures."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from typing import Any

from agent_plugin.sandbox import wire
from agent_plugin.sandbox.jobs import PROGRAM
from agent_plugin.sandbox.result import Picture, ToolResult
from agent_plugin.sandbox.trees import ROOT

START = "import sys; sys.path[:0] = {paths!r}; from agent_plugin.sandbox.keeper import main; main()"


class SandboxRefused(RuntimeError):
    """No program is run, because nothing that would wall it in works; the message says what failed, and why."""


class Keeper:
    """A running keeper process, and the programs that it has been given."""

    def __init__(self, settings: Mapping[str, Any], *, warning: str | None = None) -> None:
        self.rung: str = settings["rung"]
        self.warning = warning
        self._lock = threading.Lock()
        self._futures: dict[int, Future[ToolResult]] = {}
        self._number = 0
        self._broken: str | None = None
        self._socket, theirs = socket.socketpair()
        code = START.format(paths=[str(ROOT), *settings["trees"]["paths"]])
        with theirs:
            self._process = subprocess.Popen(
                [settings["trees"]["executable"], "-I", "-S", "-c", code, json.dumps(dict(settings))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=None,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name="sandbox-keeper", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def submit(self, code: str, files: Mapping[str, bytes], wall: float | None) -> Future[ToolResult]:
        """Hand a program over; its result, or SandboxRefused, comes by the future."""
        future: Future[ToolResult] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._broken is not None:
                future.set_exception(SandboxRefused(self._broken))
                return future
            self._number += 1
            self._futures[self._number] = future
            header = {"op": "run", "id": self._number, "wall": wall, "names": [PROGRAM, *files]}
            with contextlib.suppress(OSError):  # it has ended: the reader says so
                self._socket.sendall(wire.pack(header, [code.encode("utf-8", "replace"), *files.values()]))
        return future

    def cancel(self, future: Future[ToolResult]) -> None:
        """End that program; its result says `cancelled`, unless it ended before."""
        with self._lock:
            for number, known in self._futures.items():
                if known is future:
                    with contextlib.suppress(OSError):
                        self._socket.sendall(wire.pack({"op": "cancel", "id": number}))

    def close(self) -> None:
        """End every program and wait until nothing is left."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._process.wait()
        self._reader.join()
        self._socket.close()

    def _read(self) -> None:
        unpacker = wire.Unpacker()
        try:
            while data := self._socket.recv(1 << 20):
                for header, blobs in unpacker.feed(data):
                    self._on_message(header, blobs)
        except OSError:
            pass
        self._fail("the keeper of the sandbox has ended")

    def _on_message(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        if header["op"] == "broken":
            self._fail(f"{self.rung}: no interpreter starts: {header['why']}")
            return
        with self._lock:
            future = self._futures.pop(header["id"], None)
        if future is not None:
            future.set_result(self._result(header, blobs))

    def _result(self, header: Mapping[str, Any], blobs: list[bytes]) -> ToolResult:
        pictures = zip(header["pictures"], blobs[2:], strict=True)
        return ToolResult(
            reason=header["reason"],
            seconds=header["seconds"],
            rung=self.rung,
            exit_status=header["exit_status"],
            stdout=blobs[0].decode("utf-8", "replace"),
            stderr=blobs[1].decode("utf-8", "replace"),
            pictures=tuple(Picture(p["name"], p["width"], p["height"], data) for p, data in pictures),
            notes=tuple(header["notes"]),
            warning=self.warning,
        )

    def _fail(self, why: str) -> None:
        with self._lock:
            self._broken = self._broken or why
            waiting = list(self._futures.values())
            self._futures.clear()
        for future in waiting:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(SandboxRefused(self._broken))
