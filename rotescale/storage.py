"""Files that appear whole or not at all, and the errors of a disk put into words. No torch."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rotescale.errors import StorageError

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free space or choose another storage folder",
    errno.EDQUOT: "the quota is used up; free space or choose another storage folder",
    errno.EACCES: "no permission to write; change the owner or mode, or choose another folder",
    errno.EPERM: "no permission to write; change the owner or mode, or choose another folder",
    errno.EROFS: "the file system is read-only; choose a folder that can be written",
    errno.EISDIR: "a folder stands where a file must go; remove it or choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses while ``path`` is written into a StorageError with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise StorageError(f"{path}: cannot be written ({error.strerror}): {remedy}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``path`` so that a reader sees the old content or all of it, even after a crash."""
    with writing(path), _complete_temporary(path, data) as temporary:
        temporary.replace(path)
        sync_folder(path.parent)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Create ``path`` with all of ``data``; False, and nothing changed, where it exists already.

    Of several processes that try at once, exactly one is told True.
    """
    with writing(path), _complete_temporary(path, data) as temporary:
        try:
            # A link is refused where the name is taken, and carries complete content at once.
            os.link(temporary, path)
        except FileExistsError:
            return False
        sync_folder(path.parent)
        return True


def build_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """Return ``target``, built by ``build(temporary sibling)`` and renamed into place if missing.

    A folder named ``target`` is complete by construction. Concurrent builders may both work; the
    first to finish wins, and the others drop their copy. ``build`` must give equal results.
    """
    if target.is_dir():
        return target
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            temporary.chmod(0o755)
            build(temporary)
            _make_readable(temporary)
            sync_tree(temporary)
            try:
                temporary.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not target.is_dir():
                    raise
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def sync_folder(folder: Path) -> None:
    """Make renames and links inside ``folder`` survive a power loss, where the system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems refuse to sync a folder; the rename itself is still atomic.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder`` to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def _make_readable(folder: Path) -> None:
    """Let other users read what some libraries write for the owner alone: storage is shared."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


@contextmanager
def _complete_temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A synced file with ``data`` beside ``path``, gone at the end unless it was moved away."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
