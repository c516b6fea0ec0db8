"""What a caller asks of the code executor, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from agent_plugin.sandbox.jobs import check_names
from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.result import Reason, ToolResult

Label = Literal["ok", "no_picture", "error", "timeout", "memory", "output", "files", "cancelled"]
"""How a program did: a picture is there; it ended well without one; it failed; it was ended at a limit; withdrawn."""
LABELS: tuple[Label, ...] = get_args(Label)
Origin = Literal["model", "library"]
"""Who wrote a program: a model, or the seeded library that stands in for one with random weights."""
TAIL = 2000
"""Characters of a program's output that are handed on: the end of it."""
_LABEL_OF: Mapping[Reason, Label] = {
    "ok": "ok",
    "failed": "error",
    "killed": "error",
    "timed_out": "timeout",
    "out_of_cpu": "timeout",
    "out_of_memory": "memory",
    "too_much_output": "output",
    "too_many_files": "files",
    "too_much_disk": "files",
    "cancelled": "cancelled",
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A program to run: the payload of an ask to `ToolDriver`."""

    code: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Put beside the program, by relative path."""
    wall: float | None = None
    """Seconds that it may take, if fewer than the sandbox's limit."""
    origin: Origin = "model"


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What became of a program. All but `label`, `seconds`, `rung` and `origin` is its own making: do not trust it."""

    label: Label
    seconds: float
    """From the start of the program to its end."""
    rung: str
    """What walled it in: bwrap, landlock or none."""
    origin: Origin
    stdout: str = ""
    """The end of what it printed."""
    stderr: str = ""
    """The end of its errors: the last lines of a traceback say what is wrong."""
    picture: bytes | None = None
    """PNG: the first picture by name that it left, whatever its label. None: there is none."""
    notes: tuple[str, ...] = ()
    warning: str | None = None
    """Set where nothing walled it in."""

    @property
    def branch(self) -> Literal["ok", "failed"]:
        """The result as edges of a workflow name it: `ok` if there is a picture to go on with, else `failed`."""
        return "ok" if self.label == "ok" else "failed"


def check_call(name: str, payload: Any, limits: Limits) -> ToolCall:
    """The call in an ask's payload. Raises ValueError, one line that names the request, for what cannot be run."""
    call = ToolCall(payload) if isinstance(payload, str) else payload
    try:
        if not isinstance(call, ToolCall) or not isinstance(call.code, str):
            raise ValueError(f"its payload must be a ToolCall or a program's text, got {payload!r:.60}")
        check_names(call.files)
        if call.wall is not None and not call.wall > 0:
            raise ValueError(f"wall is {call.wall} seconds, expected more than 0")
        sizes = {"its program": len(call.code), **{f"file {name!r}": len(data) for name, data in call.files.items()}}
        for what, size in sizes.items():
            if size > limits.file_size:
                raise ValueError(f"{what} is larger than {limits.file_size} bytes")
    except ValueError as error:
        raise ValueError(f"request {name!r}: {error}") from None
    return call


def make_output(result: ToolResult, origin: Origin) -> ToolOutput:
    """What a caller gets of a run in the sandbox."""
    label = _LABEL_OF[result.reason]
    picture = result.pictures[0].data if result.pictures else None
    return ToolOutput(
        label="no_picture" if label == "ok" and picture is None else label,
        seconds=result.seconds,
        rung=result.rung,
        origin=origin,
        stdout=result.stdout[-TAIL:],
        stderr=result.stderr[-TAIL:],
        picture=picture,
        notes=result.notes,
        warning=result.warning,
    )
