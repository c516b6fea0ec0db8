"""A run's folders: made, measured while the program runs, looked through when it has ended, removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agent_plugin.sandbox.limits import Limits
from agent_plugin.sandbox.result import Reason

PREFIX = "neustream-sandbox-"
LOCK = "lock"
PROGRAM = "program.py"
PARTS = ("job", "config", "tmp")
"""The program's own folders: where it works, matplotlib's settings, temporary files."""
PICTURES = (".png", ".jpg", ".jpeg")


def make_base(folder: str | None, *, open_to_users: bool) -> tuple[Path, int]:
    """The folder of one keeper's runs, and the descriptor that holds its lock. Sweeps away what dead keepers left."""
    parent = Path(folder or tempfile.gettempdir())
    sweep(parent)
    while True:
        base = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(base / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            base.chmod(0o711 if open_to_users else 0o700)
        except (BlockingIOError, FileNotFoundError):  # another keeper's sweep came between, and takes it away
            os.close(lock)
        else:
            return base, lock


def sweep(parent: Path) -> None:
    """Remove the folders of this user's keepers that no longer live: they hold their lock as long as they do."""
    for base in parent.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            if base.is_symlink() or base.stat().st_uid != os.getuid():
                continue
            lock = os.open(base / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(base)
            finally:
                os.close(lock)


def check_names(files: Mapping[str, bytes]) -> None:
    """Raises ValueError for a name that is no plain path inside the job folder."""
    for name in files:
        path = PurePosixPath(name)
        parts = name.split("/")
        if path.is_absolute() or not all(parts) or {".", ".."} & set(parts) or "\0" in name or name == PROGRAM:
            raise ValueError(f"file name {name!r}, expected a relative path without '..' and other than {PROGRAM}")


@dataclass(frozen=True, slots=True)
class Job:
    """The folders of one run."""

    folder: Path

    @property
    def parts(self) -> tuple[Path, ...]:
        return tuple(self.folder / part for part in PARTS)

    def make(self, uid: int | None, fonts: Path | None) -> None:
        """Make the folders, the program's user's own; `fonts`: matplotlib's font list, made by an earlier run."""
        self.folder.mkdir(mode=0o700)
        for part in self.parts:
            part.mkdir(mode=0o700)
        if fonts is not None:
            shutil.copy(fonts, self.folder / "config" / fonts.name)
        if uid is not None:
            for path in (self.folder, *self.parts, *(self.folder / "config").iterdir()):
                os.chown(path, uid, uid)

    def put(self, files: Mapping[str, bytes], uid: int | None) -> None:
        """Write the program and its files. Before the program runs, so nobody else writes here."""
        for name, data in files.items():
            path = self.folder / "job" / name
            made = [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            for new in (path, *made) if uid is not None else ():
                os.chown(new, uid or 0, uid or 0)

    def measure(self, most: int) -> tuple[int, int]:
        """`(entries, bytes on disk)` of the folders; stops counting above `most` entries."""
        count = size = 0
        for entry in self._entries():
            with contextlib.suppress(FileNotFoundError):  # the program removed it meanwhile
                size += entry.stat(follow_symlinks=False).st_blocks * 512
            count += 1
            if count > most:
                break
        return count, size

    def over(self, limits: Limits, given: tuple[int, int]) -> Reason | None:
        """Which limit the folders exceed; `given`: what they held before the program ran, as `measure` says it."""
        most = limits.files + given[0]
        try:
            count, size = self.measure(most)
        except OSError:  # a path too long to walk
            return "too_many_files"
        return "too_many_files" if count > most else "too_much_disk" if size > limits.disk + given[1] else None

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        todo = [str(part) for part in self.parts]
        while todo:
            with contextlib.suppress(FileNotFoundError), _opened(todo.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)

    def pictures(self, limits: Limits) -> Iterator[tuple[str, bytes]]:
        """`(name, bytes)` of what is named like a picture, by name; only plain files, opened without following."""
        root = self.folder / "job"
        found = []
        with contextlib.suppress(OSError):
            for entry in self._entries():
                path = Path(entry.path)
                if path.suffix.lower() in PICTURES and path.is_relative_to(root):
                    found.append(path)
        for path in sorted(found):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                with os.fdopen(fd, "rb") as file:
                    kind = os.fstat(fd)
                    if stat.S_ISREG(kind.st_mode) and kind.st_nlink == 1:
                        yield str(path.relative_to(root)), file.read(limits.file_size + 1)


@contextlib.contextmanager
def _opened(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        entries = os.scandir(folder)
    except PermissionError:  # the program took its owner's rights away
        os.chmod(folder, 0o700)
        entries = os.scandir(folder)
    with entries:
        yield entries


def remove(folder: Path) -> None:
    """Remove a tree however deep: folders are lifted to the top before they are emptied, so no path grows."""
    todo = [folder]
    lift = f".{os.urandom(8).hex()}-"
    number = 0
    while todo:
        current = todo[-1]
        lifted = []
        try:
            with _opened(str(current)) as entries:
                for entry in list(entries):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)
                    elif current == folder:
                        lifted.append(Path(entry.path))
                    else:
                        number += 1
                        target = folder / f"{lift}{number}"
                        os.chmod(entry.path, 0o700)
                        os.rename(entry.path, target)
                        lifted.append(target)
            if not lifted:
                os.rmdir(current)
                todo.pop()
        except FileNotFoundError:
            todo.pop()
        todo.extend(lifted)
