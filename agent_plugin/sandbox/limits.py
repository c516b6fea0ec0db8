"""What one program may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run. Raises ValueError, naming the field, where one cannot hold."""

    wall: float = 20.0
    """Seconds from the start of the program to its end."""
    cpu: float = 15.0
    """Seconds of processor time, rounded up to whole ones."""
    memory: int = 1024 * MIB
    """Bytes of private memory that the program may have beside the interpreter."""
    threads: int = 32
    """Threads at once, where something counts them; else the program has one. Processes: one, always."""
    file_size: int = 16 * MIB
    """Bytes of one file."""
    files: int = 100
    """Files and folders that the program may leave or have at once."""
    disk: int = 64 * MIB
    """Bytes of all its files together."""
    open_files: int = 64
    output: int = 64 * 1024
    """Bytes of stdout and stderr together; a program that prints more is ended."""
    pictures: int = 8
    """Pictures that are handed on; further ones are left out, with a note."""
    pixels: int = 16_000_000
    """Pixels of one picture."""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1 << 50:
                raise ValueError(f"limit {name} is {value!r}, expected a number above 0")
            if name not in ("wall", "cpu") and not isinstance(value, int):
                raise ValueError(f"limit {name} is {value!r}, expected a whole number")
        if self.memory < 64 * MIB:
            raise ValueError(f"limit memory is {self.memory} bytes, expected at least {64 * MIB}: a plot needs as much")
        if self.open_files < 16:
            raise ValueError(f"limit open_files is {self.open_files}, expected at least 16")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Limits:
        return cls(**data)
