"""Files that appear whole or not at all, on a disk or in an object store. No torch.

A run folder is a ``pathlib.Path`` or, for a URL, a ``RemotePath``; what the two do differently is
here. On a disk a file is written beside its place, synced, and renamed or linked into it; a store
shows an object when all of it is there, and can create one on condition that there is none.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import xxhash

from rotescale.direct import DirectFile
from rotescale.errors import StorageError
from rotescale.object_client import SCHEMES
from rotescale.object_store import RemotePath

StoragePath: TypeAlias = Path | RemotePath
"""A file or folder of a run, wherever the run lies."""

_NODE_FOLDER = "ROTESCALE_LOCAL"
_CHUNK_BYTES = 4 << 20
_LINE_BYTES = 1 << 12

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free space or choose another storage folder",
    errno.EDQUOT: "the quota is used up; free space or choose another storage folder",
    errno.EACCES: "no permission to write; change the owner or mode, or choose another folder",
    errno.EPERM: "no permission to write; change the owner or mode, or choose another folder",
    errno.EROFS: "the file system is read-only; choose a folder that can be written",
    errno.EISDIR: "a folder stands where a file must go; remove it or choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
}


def storage_path(text: str) -> StoragePath:
    """The place that ``text`` names: a path, or a URL. ValueError, with the remedy, for others."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise ValueError("no user of that name has a home here; give the whole path") from None
    if scheme in SCHEMES:
        return RemotePath.parse(text)
    if scheme != "file":
        known = ", ".join(f"{name}://" for name in (*SCHEMES, "file"))
        raise ValueError(f"unknown scheme {scheme}://; give a folder, or a URL with {known}")
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ValueError("a file URL names no host; write it as file:///path/to/folder")
    return Path(unquote(parts.path))


def node_folder(root: StoragePath) -> Path:
    """Where this machine keeps what must be a local file of the run at ``root``.

    That is the run folder itself, or for a URL a folder below ``ROTESCALE_LOCAL``, by default
    ``~/.cache/rotescale/local``.
    """
    if isinstance(root, Path):
        return root
    scheme, _, bucket = root.bucket.partition("://")
    return local_cache() / "runs" / f"{scheme}-{bucket}" / root.key


def local_cache() -> Path:
    """The folder of this machine: copies of what lies in object stores, and offloaded state."""
    return Path(os.environ.get(_NODE_FOLDER) or "~/.cache/rotescale/local").expanduser()


def relative(path: StoragePath, folder: StoragePath) -> str:
    """The way from ``folder`` to ``path``, with slashes."""
    if isinstance(path, RemotePath):
        assert isinstance(folder, RemotePath), folder
        return path.relative_to(folder).as_posix()
    assert isinstance(folder, Path), folder
    return path.relative_to(folder).as_posix()


@contextmanager
def writing(path: StoragePath) -> Iterator[None]:
    """Turn what the disk refuses while ``path`` is written into a StorageError with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise StorageError(f"{path}: cannot be written ({error.strerror}): {remedy}") from error


def make_folder(folder: StoragePath) -> None:
    """Create ``folder`` where there are folders; an object store has keys only."""
    if isinstance(folder, Path):
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)


def write_atomic(path: StoragePath, data: bytes) -> None:
    """Write ``path`` so that a reader sees the old content or all of it, even after a crash."""
    if isinstance(path, RemotePath):
        path.write(data)
        return
    with writing(path), _complete_temporary(path, data) as temporary:
        temporary.replace(path)
        sync_folder(path.parent)


def create_exclusive(path: StoragePath, data: bytes) -> bool:
    """Create ``path`` with all of ``data``; False, and nothing changed, where it exists already.

    Of several processes that try at once, exactly one is told True.
    """
    if isinstance(path, RemotePath):
        return path.create(data)
    with writing(path), _complete_temporary(path, data) as temporary:
        try:
            # A link is refused where the name is taken, and carries complete content at once.
            os.link(temporary, path)
        except FileExistsError:
            # A network file system may say so of a link that it has made, and whose answer was
            # lost; then the file has two names.
            if temporary.stat().st_nlink < 2:
                return False
        sync_folder(path.parent)
        return True


def write_stream(
    path: StoragePath,
    chunks: Callable[[], Iterable[memoryview | bytes]],
    *,
    num_bytes: int,
    contended: bool = False,
) -> None:
    """Write ``chunks()`` front to back; the file appears whole or not at all, synced.

    ``num_bytes`` is about their sum. What ``chunks`` raises is raised, and nothing is left; it is
    called again where an object store wants all of it once more. ``contended``: a process that
    should be dead may still write the same file, with the same content. The caller syncs the
    folder, by ``write_atomic`` of a file beside it or by ``sync_folder``.
    """
    if isinstance(path, RemotePath):
        path.write_stream(chunks, num_bytes=num_bytes)
        return
    unique = f".{uuid.uuid4().hex}" if contended else ""
    temporary = path.with_name(f".{path.name}{unique}.tmp")
    with writing(path):
        try:
            with DirectFile(temporary) as file:
                for chunk in chunks():
                    file.write(memoryview(chunk))
                file.sync()
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def file_size(path: StoragePath) -> int | None:
    """Bytes of the file; None where there is none."""
    if isinstance(path, RemotePath):
        return path.num_bytes()
    return path.stat().st_size if path.is_file() else None


def file_digest(path: Path) -> str:
    """xxh3_128 of the file's bytes, in hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def entries(folder: StoragePath) -> list[StoragePath]:
    """What lies in ``folder``, as far as it is listed; nothing where there is no such folder."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_line(path: StoragePath) -> str:
    """The first line of a text file; FileNotFoundError where there is no file."""
    if isinstance(path, RemotePath):
        start = b""
        while b"\n" not in start and (more := path.read_range(len(start), _LINE_BYTES)):
            start += more
        return start.partition(b"\n")[0].decode()
    with path.open(encoding="utf-8") as file:
        return file.readline()


def remove(*paths: StoragePath) -> None:
    """Remove files, of which any may be gone already."""
    RemotePath.remove_all([path for path in paths if isinstance(path, RemotePath)])
    for path in paths:
        if isinstance(path, Path):
            with writing(path):
                path.unlink(missing_ok=True)


def remove_folder(folder: StoragePath) -> None:
    """Remove a folder with all in it; of an object store, what the store lists below it."""
    if isinstance(folder, RemotePath):
        RemotePath.remove_all(folder.below())
        return
    # A process that is still writing there loses its files, as it should.
    with writing(folder), suppress(FileNotFoundError):
        shutil.rmtree(folder)


def step_aside(path: StoragePath, aside: StoragePath) -> None:
    """Move ``path`` to ``aside``, beside it; FileNotFoundError where it is gone.

    No store renames: the copy is there before the original goes, so a crash loses neither.
    """
    if isinstance(path, RemotePath):
        write_atomic(aside, path.read_bytes())
        remove(path)
        return
    assert isinstance(aside, Path), aside
    with writing(path):
        path.replace(aside)


def step_back(aside: StoragePath, path: StoragePath) -> None:
    """Undo ``step_aside``."""
    if isinstance(aside, RemotePath):
        create_exclusive(path, aside.read_bytes())
        remove(aside)
        return
    assert isinstance(path, Path), path
    with writing(path):
        aside.replace(path)


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


def sync_folder(folder: StoragePath) -> None:
    """Make renames and links inside ``folder`` survive a power loss, where the system can."""
    if isinstance(folder, RemotePath):
        return
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
