"""The folder in which callers and a server find each other, and its lock."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the lock of ``folder``, which is made where it is missing; its descriptor."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        if not private or found.st_uid != os.getuid():
            raise PermissionError(f"{folder}: no folder of this user alone; remove it")
        file = _open_locked(folder / "lock")
        if file is not None:
            break
    with file:
        yield file.fileno()


def _open_locked(path: Path) -> TextIO | None:
    """The lock's file, locked; None where a server that ends has taken its folder away."""
    try:
        file = path.open("a")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
    file.close()
    return None
