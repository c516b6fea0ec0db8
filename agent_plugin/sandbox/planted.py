"""What a prober puts outside a sandbox: to be read, written to, connected to, killed; and whether it was."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from agent_plugin.sandbox.probes import forbidden_calls

CONTENT = "untouched\n"


class Planted:
    """A context manager; `values` is what probes get to know."""

    def __init__(self) -> None:
        self.word = secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="neustream-planted-"))
        self.outside = self.folder / "outside"
        self.outside.mkdir()
        self.folder.chmod(0o755)
        self.outside.chmod(0o777)
        self.secret = self.folder / "secret"
        self.secret.write_text(self.word)
        self.secret.chmod(0o644)
        self.file = self.outside / "file"
        self.file.write_text(CONTENT)
        self.file.chmod(0o666)
        self.before = self._state()
        abstract = f"neustream-{self.word[:8]}"
        self.listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
        port = self.listeners[0].getsockname()[1]
        self.listeners[1].bind(("127.0.0.1", port))
        for address in (str(self.folder / "socket"), "\0" + abstract):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address)
            listener.listen()
            self.listeners.append(listener)
        (self.folder / "socket").chmod(0o777)
        self.victim = subprocess.Popen(["sleep", "1000"], env={"WORD": self.word}, start_new_session=True)
        self.values: dict[str, Any] = {
            "secret": str(self.secret),
            "folder": str(self.outside),
            "file": str(self.file),
            "victim": self.victim.pid,
            "port": port,
            "socket": str(self.folder / "socket"),
            "abstract": abstract,
            "base": tempfile.gettempdir(),
            "word": self.word[:-4],  # the rest is for us: whoever prints it has read it
        }
        with contextlib.suppress(KeyError):
            self.values["calls"] = forbidden_calls(os.uname().machine)

    def _state(self) -> tuple[object, ...]:
        names = sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.name != "socket")
        info = self.file.stat() if self.file.exists() else None
        return names, info and (info.st_mode, info.st_uid, info.st_mtime, info.st_size, info.st_nlink)

    def harm(self) -> list[str]:
        """What a program did outside, one line each; empty: nothing."""
        found = []
        if self.victim.poll() is not None:
            found.append("ended another process")
        if self._state() != self.before:
            found.append(f"changed files outside: {self._state()}, was {self.before}")
        for listener in self.listeners:
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                if listener.type == socket.SOCK_DGRAM:
                    listener.recv(1)
                else:
                    listener.accept()
                found.append(f"reached a socket: {listener}")
        return found

    def is_told(self, text: str) -> bool:
        """Whether the secret is in it."""
        return self.word in text

    def __enter__(self) -> Planted:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.victim.kill()
        self.victim.wait()
        for listener in self.listeners:
            listener.close()
        shutil.rmtree(self.folder)
