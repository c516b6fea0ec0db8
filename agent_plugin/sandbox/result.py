"""What comes of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Reason = Literal[
    "ok",
    "failed",
    "timed_out",
    "out_of_cpu",
    "out_of_memory",
    "killed",
    "too_much_output",
    "too_many_files",
    "too_much_disk",
    "cancelled",
]
"""How a run ended: with status 0; with another; at a limit; by a signal of its own making; by the caller."""
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that the program left, decoded and written anew as PNG by the checker: its pixels and nothing else."""

    name: str
    """Path inside the job folder."""
    width: int
    height: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ToolResult:
    """One run's outcome. Everything but `reason`, `seconds` and `rung` was made by the program: do not trust it."""

    reason: Reason
    seconds: float
    """From the start of the program to its end, in seconds; 0 if it never started."""
    rung: str
    """bwrap, landlock or none."""
    exit_status: int | None = None
    """None if a signal ended the program or it never started."""
    stdout: str = ""
    stderr: str = ""
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    """What was cut or left out, one line each."""
    warning: str | None = None
    """Set where nothing walls the program in."""

    @property
    def is_ok(self) -> bool:
        """Whether the program ran to its end with status 0."""
        return self.reason == "ok"

    def to_json(self) -> dict[str, Any]:
        """The outcome for a record: everything but the pictures' bytes."""
        pictures = [{"name": p.name, "width": p.width, "height": p.height, "bytes": len(p.data)} for p in self.pictures]
        data = {
            "reason": self.reason,
            "seconds": self.seconds,
            "rung": self.rung,
            "exit_status": self.exit_status,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "pictures": pictures,
            "notes": list(self.notes),
        }
        return data | ({"warning": self.warning} if self.warning else {})
