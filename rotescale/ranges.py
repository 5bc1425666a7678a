"""Ranges of a folder's files: from a disk as they are asked for, from a store in windows."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from rotescale.object_store import RemotePath
from rotescale.storage import StoragePath

_MAX_OPEN_FILES = 64
WINDOW_BYTES = 4 << 20
"""A request's latency is worth about this much of one connection, some 50 ms of 80 MB/s."""
_WINDOWS_AT_ONCE = 8
_KEPT_WINDOWS = 16
"""64 MiB: a reader goes through masters and moments of several ranks' files side by side."""


class FolderRanges(Protocol):
    """Reads ranges of the files in one folder."""

    bytes_read: int
    """What has come from the disk or over the network."""

    def read_into(self, file: str, target: memoryview, offset: int, *, again: bool = False) -> int:
        """Fill ``target`` from byte ``offset`` on; returns how much there was before the end.

        ``again`` reads anew what was read before. OSError where there is no file or it cannot be
        read; for a store, the StorageError that it raises.
        """
        ...

    def expect(self, file: str, begin: int, end: int) -> None:
        """Tell that bytes ``[begin, end)`` are asked for next, piece by piece."""
        ...

    def close(self) -> None:
        """Give back what is held; a later read opens the files again."""
        ...


def open_ranges(folder: StoragePath) -> FolderRanges:
    """A reader of the files in ``folder``; none is opened before it is read."""
    return _RemoteRanges(folder) if isinstance(folder, RemotePath) else _LocalRanges(folder)


class _LocalRanges:
    def __init__(self, folder: Path) -> None:
        self.bytes_read = 0
        self._folder = folder
        self._descriptors: dict[str, int] = {}

    def read_into(self, file: str, target: memoryview, offset: int, *, again: bool = False) -> int:
        descriptor = self._descriptor(file)
        rest = target
        while rest:
            num_bytes = os.preadv(descriptor, [rest], offset)
            if not num_bytes:
                break
            self.bytes_read += num_bytes
            offset += num_bytes
            rest = rest[num_bytes:]
        return len(target) - len(rest)

    def expect(self, file: str, begin: int, end: int) -> None:
        """Nothing: the system reads ahead."""

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _descriptor(self, file: str) -> int:
        if file not in self._descriptors:
            if len(self._descriptors) >= _MAX_OPEN_FILES:
                # Hundreds of ranks' files may exceed the limit of open files.
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[file] = os.open(self._folder / file, os.O_RDONLY)
        return self._descriptors[file]


class _RemoteRanges:
    """Windows of some MiB, several requested at once, the latest kept.

    Small tensors lie side by side and are read one after the other: a request for each would take
    longer than all their bytes.
    """

    def __init__(self, folder: RemotePath) -> None:
        self.bytes_read = 0
        self._folder = folder
        self._windows: OrderedDict[tuple[str, int], memoryview] = OrderedDict()
        self._expected: tuple[str, int] = ("", 0)

    def read_into(self, file: str, target: memoryview, offset: int, *, again: bool = False) -> int:
        done = 0
        while done < len(target):
            number, begin = divmod(offset + done, WINDOW_BYTES)
            window = self._window(file, number, end=offset + len(target), again=again)
            found = window[begin : begin + len(target) - done]
            target[done : done + len(found)] = found
            done += len(found)
            if len(window) < WINDOW_BYTES:
                break
        return done

    def expect(self, file: str, begin: int, end: int) -> None:
        self._expected = (file, end)

    def close(self) -> None:
        self._windows.clear()

    def _window(self, file: str, number: int, *, end: int, again: bool) -> memoryview:
        """The window of that number; those up to ``end``, or to what is expected, come with it."""
        window = None if again else self._windows.get((file, number))
        if window is None:
            end = max(end, self._expected[1]) if file == self._expected[0] else end
            last = number + 1 if again else min(-(-end // WINDOW_BYTES), number + _WINDOWS_AT_ONCE)
            numbers = [
                n for n in range(number, last) if n == number or (file, n) not in self._windows
            ]
            starts = [n * WINDOW_BYTES for n in numbers]
            read = (self._folder / file).read_ranges(starts, WINDOW_BYTES)
            self.bytes_read += sum(map(len, read))
            self._windows |= {(file, n): data for n, data in zip(numbers, read, strict=True)}
            window = read[0]
        self._windows.move_to_end((file, number))
        while len(self._windows) > _KEPT_WINDOWS:
            self._windows.popitem(last=False)
        return window
