"""RemotePath: a key of an object store, with the part of pathlib.Path that runs use. No torch."""

from __future__ import annotations

import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from rotescale.errors import StorageError, StorageUnavailableError
from rotescale.object_client import (
    Answer,
    BrokenAnswerError,
    PastTheEndError,
    connect,
    explained,
    is_conflict,
    patiently,
    request_threads,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PART_BYTES = 16 << 20
_MAX_PARTS = 9_000
"""S3 refuses more than 10,000."""
_PARTS_IN_FLIGHT = 4
_TOKEN = "rotescale-token"
_CREATIONS = 20
_UPLOADS = 3
_CONFLICT_SECONDS = 0.5
_URL = re.compile(r"(s3|gs)://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])((?:/[A-Za-z0-9._=@+-]+)*)/?")


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """An object, or the folder that all keys below it make up; nothing is asked by naming it."""

    bucket: str
    """Scheme and bucket, such as ``s3://bucket``."""
    key: str
    """Without a slash at either end; empty for the bucket itself."""

    @classmethod
    def parse(cls, url: str) -> RemotePath:
        """The place that ``url`` names; ValueError, with the remedy, where it names none."""
        match = _URL.fullmatch(url)
        if match is None or {".", ".."} & set(match[3].split("/")):
            raise ValueError(
                "no URL of an object store; write it as s3://bucket/prefix or gs://bucket/prefix, "
                "with a prefix of letters, digits and . _ = @ + -"
            )
        return cls(f"{match[1]}://{match[2]}", match[3].removeprefix("/"))

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}" if self.key else self.bucket

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.bucket, f"{self.key}/{name}" if self.key else name)

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The folder that this lies in."""
        return RemotePath(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> RemotePath:
        """Another object in the same folder."""
        return self.parent / name

    def absolute(self) -> RemotePath:
        """Itself."""
        return self

    def relative_to(self, folder: RemotePath) -> PurePosixPath:
        """The way here from ``folder``; ValueError where this does not lie below it."""
        if self.bucket != folder.bucket:
            raise ValueError(f"{self} does not lie below {folder}")
        return PurePosixPath(self.key).relative_to(folder.key or ".")

    def exists(self) -> bool:
        """Whether there is an object of this very key; a folder is none."""
        return self.num_bytes() is not None

    def num_bytes(self) -> int | None:
        """Size of the object; None where there is none."""
        import obstore

        try:
            return int(self._ask(lambda: obstore.head(self._store, self.key)["size"]))
        except FileNotFoundError:
            return None

    def read_bytes(self) -> bytes:
        """All of the object; FileNotFoundError where there is none."""
        import obstore

        return self._ask(lambda: bytes(obstore.get(self._store, self.key).bytes()))

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object as text."""
        return self.read_bytes().decode(encoding)

    def read_range(self, start: int, length: int) -> memoryview:
        """The bytes from ``start`` on, fewer or none where the object ends before."""
        import obstore

        try:
            data = self._ask(
                lambda: obstore.get_range(self._store, self.key, start=start, length=length)
            )
            return memoryview(data).cast("B")
        except PastTheEndError:
            return memoryview(b"")

    def read_ranges(self, starts: Sequence[int], length: int) -> list[memoryview]:
        """Ranges of that length, each with a request of its own, several at a time."""
        if len(starts) == 1:
            return [self.read_range(starts[0], length)]
        threads = request_threads(os.getpid())
        return list(threads.map(lambda start: self.read_range(start, length), starts))

    def write(self, data: bytes) -> None:
        """Put the object in one step: a reader sees the old one or all of this."""
        import obstore

        if len(data) > PART_BYTES:
            self.write_stream(lambda: [data], num_bytes=len(data))
            return
        put = partial(obstore.put, self._store, self.key, data, use_multipart=False)
        patiently(str(self), put, writing=True)

    def create(self, data: bytes) -> bool:
        """Put the object unless there is one; False, and nothing changed, where there is.

        A request whose answer was lost is sent again, and then finds the object that it made: so
        each carries a token by which a process knows its own. S3 refuses both of two creations
        that cross (409), and then they are tried again.
        """
        token = uuid.uuid4().hex
        for _ in range(_CREATIONS):
            if patiently(str(self), partial(self._create, data, token), writing=True):
                return True
            owner = self._token()
            if owner is not None:
                return owner == token
            time.sleep(random.uniform(0.0, _CONFLICT_SECONDS))
        raise StorageUnavailableError(
            f"{self}: refused {_CREATIONS} times as there already, and is not; run the same "
            "command again, and check the store if this stays"
        )

    def write_stream(
        self, chunks: Callable[[], Iterable[memoryview | bytes]], *, num_bytes: int
    ) -> None:
        """Upload ``chunks()`` front to back, several parts at a time; it appears when whole.

        ``num_bytes`` is about their sum: parts grow with it. Whatever ``chunks`` raises is raised,
        and the upload is dropped; it is called again where the store lost track of an upload. A
        process that is killed leaves its parts to the bucket's rule for uploads that were never
        completed.
        """
        for _ in range(_UPLOADS - 1):
            try:
                self._upload(chunks(), num_bytes=num_bytes)
                return
            except BrokenAnswerError:
                continue
        self._upload(chunks(), num_bytes=num_bytes)

    def _create(self, data: bytes, token: str) -> bool:
        """Whether the object was created; if not, it is there, or another creation crossed."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, GenericError

        try:
            obstore.put(self._store, self.key, data, mode="create", attributes={_TOKEN: token})
            return True
        except AlreadyExistsError:
            return False
        except GenericError as error:
            if not is_conflict(error):
                raise
            return False

    def _upload(self, chunks: Iterable[memoryview | bytes], *, num_bytes: int) -> None:
        import obstore

        errors: list[BaseException] = []
        token = uuid.uuid4().hex
        try:
            # The writer aborts its upload where the block raises. (``put`` would pull the chunks
            # from within its own event loop, where they could not be read from a store.)
            with (
                explained(str(self), writing=True),
                obstore.open_writer(
                    self._store,
                    self.key,
                    buffer_size=part_bytes(num_bytes),
                    max_concurrency=_PARTS_IN_FLIGHT,
                    attributes={_TOKEN: token},
                ) as writer,
            ):
                for chunk in _watched(chunks, errors):
                    writer.write(chunk)
        except BaseException as error:
            if errors:
                raise errors[0] from None
            # The answer to its completion may have been lost: then the upload is gone, and done.
            if not isinstance(error, StorageUnavailableError) or self._token() != token:
                raise

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object. Stores do not say whether there was one, so ``missing_ok`` is True."""
        assert missing_ok, "an object store does not say whether the object was there"
        self.remove_all([self])

    @staticmethod
    def remove_all(paths: Sequence[RemotePath]) -> None:
        """Remove objects of one bucket, many with each request."""
        import obstore

        if not paths:
            return
        store, keys = paths[0]._store, [path.key for path in paths]

        def delete() -> None:
            try:
                obstore.delete(store, keys)
            except FileNotFoundError:
                # Some stores mind, and then the others must still go.
                for key in keys:
                    with suppress(FileNotFoundError):
                        obstore.delete(store, key)

        patiently(str(paths[0]), delete, writing=True)

    def iterdir(self) -> Iterator[RemotePath]:
        """What the store lists in this folder: it may not yet show the latest."""
        import obstore

        found = self._ask(lambda: obstore.list_with_delimiter(self._store, self.key or None))
        for name in (*found["common_prefixes"], *(entry["path"] for entry in found["objects"])):
            yield RemotePath(self.bucket, name.rstrip("/"))

    def below(self) -> list[RemotePath]:
        """Every object that the store lists below this folder, at any depth, by key."""
        return sorted(self.entries_below())

    def entries_below(self) -> dict[RemotePath, tuple[int, str]]:
        """The same, each with its size and what tells its content from any other of it."""
        import obstore

        def listed() -> dict[RemotePath, tuple[int, str]]:
            chunks = obstore.list(self._store, prefix=self.key or None, chunk_size=1000)
            return {
                RemotePath(self.bucket, entry["path"]): (int(entry["size"]), str(entry["e_tag"]))
                for chunk in chunks
                for entry in chunk
            }

        return self._ask(listed)

    def check(self) -> None:
        """Raise StorageError unless objects can be created, once each, and removed, in this folder.

        A store that ignores the condition of a put would let two attempts take one number.
        """
        probe = self / f"probe-{uuid.uuid4().hex}"
        first, second = probe.create(b"first"), probe.create(b"second")
        probe.unlink(missing_ok=True)
        if not first or second:
            raise StorageError(
                f"{self}: the store overwrites where it was asked to create (If-None-Match), so "
                "two starts of a run could not be told apart; use a store that heeds it, such as "
                "S3, GCS or a present MinIO"
            )

    def _token(self) -> str | None:
        """Who made the object; empty where it does not say, None where there is no object."""
        import obstore

        try:
            found = self._ask(lambda: obstore.get(self._store, self.key).attributes)
        except FileNotFoundError:
            return None
        return next((str(v) for name, v in found.items() if name.lower() == _TOKEN), "")

    def _ask(self, ask: Callable[[], Answer]) -> Answer:
        return patiently(str(self), ask)

    @property
    def _store(self) -> ObjectStore:
        return connect(self.bucket, os.getpid())


def part_bytes(num_bytes: int) -> int:
    """The size of the parts in which an object of ``num_bytes`` is uploaded."""
    return max(PART_BYTES, -(-num_bytes // _MAX_PARTS))


def _watched(
    chunks: Iterable[memoryview | bytes], errors: list[BaseException]
) -> Iterator[memoryview | bytes]:
    """``chunks``, with what they raise noted, to tell it from what a store says."""
    try:
        yield from chunks
    except GeneratorExit:
        raise
    except BaseException as error:
        errors.append(error)
        raise
