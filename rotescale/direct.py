"""A file written front to back past the page cache, where the file system can. No torch.

A save that runs beside training should cost it little: copying into the page cache takes the
processor several times as long as handing the same memory to the disk.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

ALIGNMENT = 4096
"""Addresses, offsets and sizes of direct writes are multiples of this."""

_DIRECT: int = getattr(os, "O_DIRECT", 0)
_PENDING_BYTES = 1 << 20
_WRITE_BYTES = 16 << 20
_WORTHWHILE_BYTES = 64 * ALIGNMENT
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)


class DirectFile:
    """A new file at ``path``, written in order; whole and on the disk after ``sync``.

    What lies in memory as it will lie in the file, modulo ``ALIGNMENT``, is written from where it
    is; the rest goes through a small buffer. Where the system refuses, everything is written
    through the page cache.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._descriptor = os.open(path, flags | _DIRECT, 0o666)
            self.direct = bool(_DIRECT)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            self._descriptor = os.open(path, flags, 0o666)
            self.direct = False
        # Pages of its own begin at a multiple of the page size.
        self._pending = memoryview(mmap.mmap(-1, _PENDING_BYTES))
        self._num_pending = 0

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, data: memoryview) -> None:
        """Append all of ``data``, bytes; it may change as soon as this returns."""
        rest = data
        while rest:
            if not self._num_pending and self._may_be_written(rest):
                whole = len(rest) - len(rest) % ALIGNMENT if self.direct else len(rest)
                self._write(rest[:whole])
                rest = rest[whole:]
            else:
                rest = rest[self._keep(rest) :]

    def sync(self) -> None:
        """Write what is left, and wait until the disk has everything."""
        whole = self._num_pending - self._num_pending % ALIGNMENT
        self._write(self._pending[:whole])
        if whole < self._num_pending:
            # The end of the file fills no whole block.
            self._leave_direct()
            self._write(self._pending[whole : self._num_pending])
        self._num_pending = 0
        os.fsync(self._descriptor)

    def _may_be_written(self, data: memoryview) -> bool:
        if not self.direct:
            return True
        return len(data) >= _WORTHWHILE_BYTES and address(data) % ALIGNMENT == 0

    def _keep(self, data: memoryview) -> int:
        """Take the start of ``data`` into the buffer, which is written when full; how much."""
        size = min(len(data), _PENDING_BYTES - self._num_pending)
        if len(data) >= _WORTHWHILE_BYTES:
            # Up to where the rest can be written from where it is, if it ever can.
            gap = -self._num_pending % ALIGNMENT
            if (address(data) + gap) % ALIGNMENT == 0:
                size = min(size, gap)
        self._pending[self._num_pending : self._num_pending + size] = data[:size]
        self._num_pending += size
        aligned = self._num_pending % ALIGNMENT == 0
        if self._num_pending == _PENDING_BYTES or (aligned and size < len(data)):
            self._write(self._pending[: self._num_pending])
            self._num_pending = 0
        return size

    def _write(self, data: memoryview) -> None:
        rest = data
        while rest:
            try:
                # A single write may take less.
                rest = rest[os.write(self._descriptor, rest[:_WRITE_BYTES]) :]
            except OSError as error:
                if not self.direct or error.errno not in _REFUSALS:
                    raise
                self._leave_direct()

    def _leave_direct(self) -> None:
        """Go on through the page cache."""
        if self.direct:
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
            self.direct = False


def address(data: memoryview) -> int:
    """Where the bytes of ``data`` lie in memory."""
    return int(np.frombuffer(data, dtype=np.uint8).ctypes.data)


def joined(pieces: Iterable[memoryview], *, most_bytes: int) -> Iterator[memoryview]:
    """The same bytes in fewer views: pieces that lie side by side in memory become one.

    A thousand small tensors in one buffer are then as few writes as one. A view has at most
    ``most_bytes``, or is one piece, and keeps the memory of its pieces.
    """
    held: list[memoryview] = []
    start = size = 0
    for piece in pieces:
        place = address(piece)
        if held and (place != start + size or size + len(piece) > most_bytes):
            yield _memory(start, size, owner=held)
            held, size = [], 0
        start = start if held else place
        held.append(piece)
        size += len(piece)
    if held:
        yield _memory(start, size, owner=held)


def _memory(start: int, size: int, *, owner: object) -> memoryview:
    """The bytes at an address, for as long as ``owner``, which the view keeps, has them there."""
    array = (ctypes.c_ubyte * size).from_address(start)
    array.owner = owner  # type: ignore[attr-defined]
    return np.ctypeslib.as_array(array).data
