"""Is it a picture? Decoded and written anew by a process of its own that can compute and do nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import time
import warnings
from collections.abc import Sequence
from typing import Any

from PIL import Image, MpoImagePlugin, PngImagePlugin, TiffImagePlugin

from agent_plugin.sandbox import seccomp, wire
from agent_plugin.sandbox.limits import MIB, Limits
from agent_plugin.sandbox.syscalls import COMPUTING

UNCHECKED = "the pictures could not be checked, so none is handed on"
CHECK_SECONDS = 10
"""Processor seconds for the pictures of one run."""
_LOADED = (MpoImagePlugin, PngImagePlugin, TiffImagePlugin)  # the checker cannot import any more
Image.preinit()


class NoPicture(ValueError):
    """What a program left is no picture that can be handed on; the message says why."""


def repaint(data: bytes, limits: Limits) -> tuple[int, int, bytes]:
    """`(width, height, PNG)`: the picture's pixels, and nothing else of the file. Raises NoPicture."""
    if len(data) > limits.file_size:
        raise NoPicture(f"is larger than {limits.file_size} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
            if picture.width * picture.height > limits.pixels:
                raise NoPicture(f"has {picture.width} x {picture.height} pixels, at most {limits.pixels} are taken")
            has_alpha = "A" in picture.getbands() or "transparency" in picture.info
            plain = picture.convert("RGBA" if has_alpha else "RGB")
        out = io.BytesIO()
        Image.frombytes(plain.mode, plain.size, plain.tobytes()).save(out, "PNG", compress_level=1)
    except NoPicture:
        raise
    except (Exception, RecursionError, MemoryError) as error:
        raise NoPicture(f"is no PNG or JPEG picture ({type(error).__name__})") from None
    return plain.width, plain.height, out.getvalue()


def check(files: Sequence[tuple[str, bytes]], limits: Limits) -> tuple[dict[str, Any], list[bytes]]:
    """Header and blobs of the answer: `pictures` (name, width, height; a blob each) and `notes`."""
    pictures: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    notes = []
    for name, data in files:
        try:
            if len(pictures) == limits.pictures:
                raise NoPicture(f"left out: only {limits.pictures} pictures are handed on")
            width, height, png = repaint(data, limits)
            if sum(map(len, blobs)) + len(png) > limits.disk:
                raise NoPicture(f"left out: the pictures take more than {limits.disk} bytes")
        except NoPicture as error:
            notes.append(f"{name}: {error}")
            continue
        pictures.append({"name": name, "width": width, "height": height})
        blobs.append(png)
    return {"pictures": pictures, "notes": notes}, blobs


def _start(files: Sequence[tuple[str, bytes]], limits: Limits) -> tuple[int, int]:
    """`(process, descriptor)` of a checker; it writes its answer to the descriptor and ends.

    Forks: only from a process with a single thread.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.dup2(writing, 3)
        os.closerange(4, 1 << 16)
        for name, value in ((resource.RLIMIT_CPU, CHECK_SECONDS), (resource.RLIMIT_AS, 2048 * MIB)):
            resource.setrlimit(name, (value, value))
        machine = os.uname().machine
        if machine in seccomp.ARCHITECTURES:
            seccomp.forbid_new_privileges()
            seccomp.install_filter(seccomp.build_filter(machine, only=COMPUTING))
        answer = memoryview(wire.pack(*check(files, limits)))
        while answer:
            answer = answer[os.write(3, answer) :]
    finally:
        os._exit(0)


class Check:
    """A check under way. Make it only in a process with a single thread: it forks."""

    def __init__(self, files: Sequence[tuple[str, bytes]], limits: Limits) -> None:
        self.pid, self.fd = _start(files, limits)
        self.answer: tuple[dict[str, Any], list[bytes]] = ({"pictures": [], "notes": [UNCHECKED]}, [])
        """As `check` gives it, once `read` says that it is whole."""
        self._deadline = time.monotonic() + 2 * CHECK_SECONDS
        self._unpacker = wire.Unpacker()

    def read(self) -> bool:
        """Take what there is; whether the checker has ended."""
        data = os.read(self.fd, 1 << 20)
        with contextlib.suppress(wire.WireError, KeyError, ValueError):
            for answer in self._unpacker.feed(data):
                self.answer = answer
        return not data

    def on_time(self, now: float) -> None:
        """End it if it takes too long."""
        if now >= self._deadline:
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, if it has not, and let go of it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)
