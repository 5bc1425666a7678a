"""Reading a checkpoint: exactly the elements asked for, whatever world size wrote them."""

from __future__ import annotations

import difflib
import errno
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable

import torch
import xxhash

from rotescale.checkpoint.manifest import (
    BYTES_PER_ELEMENT,
    DIGEST_BYTES,
    Manifest,
    SliceEntry,
)
from rotescale.errors import CheckpointError
from rotescale.ranges import open_ranges
from rotescale.storage import StoragePath

_CHUNK_BYTES = 16 << 20
_REMEDY = "delete its manifest.json, and training resumes from the checkpoint before it"


class CheckpointReader:
    """Ranged reads of one published checkpoint, each verified; nothing is kept in memory.

    A missing file, one that is cut or cannot be read, and a changed byte are damage, if a second
    look finds them too. ``on_damage`` is told of it, and zeros are read there, so that ranks which
    load together can first finish and then agree that the checkpoint is no good. Without
    ``on_damage`` damage raises CheckpointError.
    """

    def __init__(
        self,
        directory: StoragePath,
        manifest: Manifest,
        *,
        on_damage: Callable[[str], None] | None = None,
    ) -> None:
        self._directory = directory
        self.manifest = manifest
        self._on_damage = on_damage
        self.damaged: tuple[str, str, int, int] | None = None
        """Name, part, start and stop of the first block that was no good."""
        self._ranges = open_ranges(directory)
        self._slices: dict[tuple[str, str], list[SliceEntry]] = defaultdict(list)
        for entry in sorted(manifest.slices, key=lambda entry: entry.start):
            self._slices[entry.tensor, entry.part].append(entry)

    @property
    def bytes_read(self) -> int:
        """Bytes read so far: what was asked for, and the rest of the blocks that it lies in.

        From an object store also the rest of the windows that are requested at a time.
        """
        return self._ranges.bytes_read

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        self._ranges.close()

    def has(self, part: str) -> bool:
        """Whether the checkpoint holds that part: a ``weights`` checkpoint has no moments."""
        return any(entry.part == part for entry in self.manifest.slices)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor in the checkpoint."""
        return {name: entries[0].shape for (name, _), entries in self._slices.items()}

    def read(self, name: str, part: str, start: int, stop: int) -> torch.Tensor:
        """The elements ``[start, stop)`` of the flattened tensor: (stop - start,) float32.

        Every block of ``DIGEST_BYTES`` that they lie in is compared with its digest. Raises
        CheckpointError for a tensor or part that is not there, and, without ``on_damage``, for a
        file that is missing or cut and for a byte that has changed.
        """
        entries = self._entries(name, part)
        if not 0 <= start <= stop <= entries[-1].stop:
            raise CheckpointError(
                f"{self._directory}: {part} of {name} has {entries[-1].stop} elements, and "
                f"[{start}, {stop}) was asked for; use the model that the checkpoint was written by"
            )
        elements = torch.empty(stop - start, dtype=torch.float32)
        if start == stop:
            return elements
        target = elements.numpy().data.cast("B")
        position = start
        index = bisect_right(entries, start, key=lambda entry: entry.start) - 1
        while position < stop:
            entry = entries[index]
            upto = min(stop, entry.stop)
            self._read_verified(
                entry,
                begin=BYTES_PER_ELEMENT * (position - entry.start),
                target=target[
                    BYTES_PER_ELEMENT * (position - start) : BYTES_PER_ELEMENT * (upto - start)
                ],
            )
            position, index = upto, index + 1
        return elements

    def verify(self) -> None:
        """Read every file whole and compare sizes and digests; CheckpointError for a difference."""
        chunk = memoryview(bytearray(_CHUNK_BYTES))
        for file in self.manifest.files:
            digest, num_bytes = xxhash.xxh3_128(), 0
            path = self._directory / file.name
            try:
                while found := self._ranges.read_into(file.name, chunk, num_bytes):
                    digest.update(chunk[:found])
                    num_bytes += found
            except OSError as error:
                raise CheckpointError(
                    f"{path}: cannot be read ({error.strerror}); {_REMEDY}"
                ) from error
            if num_bytes != file.num_bytes:
                raise CheckpointError(
                    f"{path}: {num_bytes} bytes, the manifest says {file.num_bytes}; {_REMEDY}"
                )
            if digest.hexdigest() != file.digest:
                raise CheckpointError(
                    f"{path}: digest {digest.hexdigest()}, the manifest says {file.digest}: its "
                    f"bytes have changed; {_REMEDY}"
                )

    def _entries(self, name: str, part: str) -> list[SliceEntry]:
        entries = self._slices.get((name, part))
        if entries:
            return entries
        names = {tensor for tensor, _ in self._slices}
        if name in names:
            raise CheckpointError(
                f"{self._directory}: a {self.manifest.kind} checkpoint holds no {part} of {name}; "
                "resume from a full checkpoint"
            )
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise CheckpointError(
            f"{self._directory}: no tensor {name!r} among {len(names)}{hint}; use the model that "
            "the checkpoint was written by"
        )

    def _read_verified(self, entry: SliceEntry, *, begin: int, target: memoryview) -> None:
        """Fill ``target`` with the slice's bytes from ``begin`` on, block by block."""
        end = begin + len(target)
        size = entry.end - entry.begin
        self._ranges.expect(entry.file, entry.begin + begin, entry.begin + end)
        for number in range(begin // DIGEST_BYTES, -(-end // DIGEST_BYTES)):
            first, last = number * DIGEST_BYTES, min((number + 1) * DIGEST_BYTES, size)
            low, high = max(first, begin), min(last, end)
            wanted = target[low - begin : high - begin]
            whole = (low, high) == (first, last)
            block = wanted if whole else memoryview(bytearray(last - first))
            damage = self._damage(entry, number, block, offset=entry.begin + first)
            # A slip on the way from the disk is not damage: what is damaged stays so.
            damage = damage and self._damage(
                entry, number, block, offset=entry.begin + first, again=True
            )
            if damage:
                if self._on_damage is None:
                    raise CheckpointError(f"{damage}; {_REMEDY}")
                if self.damaged is None:
                    start = entry.start + first // BYTES_PER_ELEMENT
                    stop = entry.start + last // BYTES_PER_ELEMENT
                    self.damaged = (entry.tensor, entry.part, start, stop)
                self._on_damage(damage)
                wanted[:] = bytes(len(wanted))
            elif not whole:
                wanted[:] = block[low - first : high - first]

    def _damage(
        self, entry: SliceEntry, number: int, block: memoryview, *, offset: int, again: bool = False
    ) -> str | None:
        """Fill ``block`` from byte ``offset`` of the entry's file on; what is wrong with it."""
        what = f"{entry.part} of {entry.tensor}"
        path = self._directory / entry.file
        try:
            found = self._ranges.read_into(entry.file, block, offset, again=again)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EIO):
                raise
            return f"{path}: cannot be read ({error.strerror}), within {what}"
        end = offset + found
        if found < len(block):
            return f"{path}: ends at byte {end}, within {what}"
        if xxhash.xxh3_64_hexdigest(block) != entry.digests[number]:
            return f"{path}: the bytes of {what} have changed (block {number}, before byte {end})"
        return None
