"""One program on its way through the keeper: asked for, running, ended, its pictures being checked."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from typing import Any

from agent_plugin.sandbox.interpreter import Interpreter
from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.result import Reason
from agent_plugin.sandbox.worker import OUT_OF_MEMORY


@dataclass(slots=True)
class Run:
    """A program, and what is known of its run so far."""

    id: int
    files: dict[str, bytes]
    """By their path in the job folder, the program among them."""
    wall: float
    """Seconds that it may take."""
    started: float = 0.0
    seconds: float = 0.0
    given: tuple[int, int] = (0, 0)
    """Entries and bytes in the job folder before it ran."""
    why: Reason | None = None
    """Why the keeper ended it, if it did."""
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    """What it left that is named like a picture: `(name, bytes)`."""
    reason: Reason = "failed"
    exit_status: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def deadline(self) -> float:
        return self.started + self.wall

    def take_output(self, data: bytes, *, is_error: bool, limit: int) -> bool:
        """Keep what fits; whether the program has now printed more than it may."""
        room = limit - len(self.stdout) - len(self.stderr)
        (self.stderr if is_error else self.stdout).extend(data[:room])
        return len(data) > room

    def end(self, interpreter: Interpreter, limits: Limits, over: Reason | None) -> None:
        """Say how it ended. The interpreter has; `over`: which limit its folders exceed now."""
        self.seconds = time.monotonic() - self.started
        self.exit_status, number = interpreter.status
        out_of_memory = interpreter.group is not None and interpreter.group.ran_out_of_memory()
        why = self.why or over
        if why is not None:
            self.reason, self.exit_status = why, None
        elif out_of_memory or self.exit_status == OUT_OF_MEMORY:
            self.reason = "out_of_memory"
        elif number is not None:
            is_cpu = number == signal.SIGXCPU or (number == signal.SIGKILL and interpreter.cpu >= limits.cpu)
            self.reason = "out_of_cpu" if is_cpu else "killed"
            self.notes.append(f"ended by signal {number}")
        else:
            self.reason = "ok" if self.exit_status == 0 else "failed"
        if self.reason == "too_much_output":
            self.notes.append(f"printed more than {limits.output} bytes: ended, the output is cut there")

    def header(self) -> dict[str, Any]:
        """The part of the answer that is known without the pictures."""
        return {
            "op": "result",
            "id": self.id,
            "reason": self.reason,
            "seconds": self.seconds,
            "exit_status": self.exit_status,
        }
