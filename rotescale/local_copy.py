"""Folders that libraries open as local files: put into a store, and copied to each node once.

Arrow shards are memory-mapped, and transformers opens folders. Such a folder is complete in an
object store when its ``folder.json`` lies there, which names every file with size and digest; its
own digest is the name of the copy, so an equal folder is copied once and no copy is out of date.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from rotescale.errors import StorageUnavailableError
from rotescale.object_store import RemotePath
from rotescale.storage import (
    StoragePath,
    build_folder,
    file_digest,
    local_cache,
    write_atomic,
    write_stream,
)

FOLDER_FILE = "folder.json"
_CHUNK_BYTES = 8 << 20


def is_uploaded(folder: RemotePath) -> bool:
    """Whether a whole folder lies there."""
    return (folder / FOLDER_FILE).exists()


def upload_folder(source: Path, folder: RemotePath) -> None:
    """Put every file below ``source`` into the store, and ``folder.json`` last."""
    entries: dict[str, Any] = {}
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        name = file.relative_to(source).as_posix()
        entries[name] = {"num_bytes": file.stat().st_size, "digest": file_digest(file)}
        chunks = partial(_chunks, file)
        write_stream(folder / name, chunks, num_bytes=entries[name]["num_bytes"])
    write_atomic(folder / FOLDER_FILE, (json.dumps(entries, indent=2) + "\n").encode())


def local_copy(folder: StoragePath) -> Path:
    """The folder as local files: itself, or a copy that processes of this machine share.

    Raises FileNotFoundError where no whole folder lies there.
    """
    if isinstance(folder, Path):
        return folder
    text = (folder / FOLDER_FILE).read_bytes()
    entries: dict[str, Any] = json.loads(text)

    def build(target: Path) -> None:
        for name, entry in entries.items():
            file = target / name
            file.parent.mkdir(parents=True, exist_ok=True)
            _download(folder / name, file, num_bytes=entry["num_bytes"])
            if file_digest(file) != entry["digest"]:
                # It was put anew since its list was read, or lost a byte on the way.
                raise StorageUnavailableError(
                    f"{folder / name}: not the file that {FOLDER_FILE} names; run the same "
                    "command again, and if this stays, remove the folder"
                )

    return build_folder(local_cache() / "folders" / xxhash.xxh3_128_hexdigest(text), build)


def local_model(folder: StoragePath, *, complete: str) -> Path:
    """A model's folder as local files: itself, or a copy of all that lies there.

    Raises FileNotFoundError where the file ``complete``, which is written last, is missing.
    """
    if isinstance(folder, Path):
        return folder
    (folder / complete).read_bytes()
    entries = folder.entries_below()
    text = "\n".join(f"{path} {entries[path]}" for path in sorted(entries)).encode()

    def build(target: Path) -> None:
        for path, (num_bytes, _) in entries.items():
            file = target / path.relative_to(folder)
            file.parent.mkdir(parents=True, exist_ok=True)
            _download(path, file, num_bytes=num_bytes)

    return build_folder(local_cache() / "folders" / xxhash.xxh3_128_hexdigest(text), build)


def _download(source: RemotePath, file: Path, *, num_bytes: int) -> None:
    with file.open("wb") as stream:
        for start in range(0, num_bytes, 4 * _CHUNK_BYTES):
            starts = list(range(start, min(start + 4 * _CHUNK_BYTES, num_bytes), _CHUNK_BYTES))
            for data in source.read_ranges(starts, _CHUNK_BYTES):
                stream.write(data)


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk
