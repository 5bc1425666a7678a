"""Reading a checkpoint: exactly the elements asked for, whatever world size wrote them."""

from __future__ import annotations

import difflib
import os
from bisect import bisect_right
from collections import defaultdict
from pathlib import Path
from types import TracebackType

import torch
import xxhash

from rotescale.checkpoint.manifest import BYTES_PER_ELEMENT, Manifest, SliceEntry
from rotescale.errors import CheckpointError

_CHUNK_BYTES = 16 << 20
_MAX_OPEN_FILES = 64
_REMEDY = "delete its manifest.json, and training resumes from the checkpoint before it"


class CheckpointReader:
    """Ranged reads of one published checkpoint; nothing else is read or kept in memory."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self.manifest = manifest
        self._descriptors: dict[str, int] = {}
        self._slices: dict[tuple[str, str], list[SliceEntry]] = defaultdict(list)
        for entry in sorted(manifest.slices, key=lambda entry: entry.start):
            self._slices[entry.tensor, entry.part].append(entry)
        self.bytes_read = 0
        """Bytes of tensors read so far."""

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def has(self, part: str) -> bool:
        """Whether the checkpoint holds that part: a ``weights`` checkpoint has no moments."""
        return any(entry.part == part for entry in self.manifest.slices)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor in the checkpoint."""
        return {name: entries[0].shape for (name, _), entries in self._slices.items()}

    def read(self, name: str, part: str, start: int, stop: int) -> torch.Tensor:
        """The elements ``[start, stop)`` of the flattened tensor: (stop - start,) float32.

        Raises CheckpointError for a tensor or part that is not there, and for a file that is cut.
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
            self._read_range(
                entry,
                offset=entry.begin + BYTES_PER_ELEMENT * (position - entry.start),
                target=target[
                    BYTES_PER_ELEMENT * (position - start) : BYTES_PER_ELEMENT * (upto - start)
                ],
            )
            position, index = upto, index + 1
        return elements

    def verify(self) -> None:
        """Read every file whole and compare sizes and digests; CheckpointError for a difference."""
        for file in self.manifest.files:
            digest, num_bytes = xxhash.xxh3_128(), 0
            descriptor = self._descriptor(file.name)
            while chunk := os.pread(descriptor, _CHUNK_BYTES, num_bytes):
                digest.update(chunk)
                num_bytes += len(chunk)
            path = self._directory / file.name
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

    def _read_range(self, entry: SliceEntry, *, offset: int, target: memoryview) -> None:
        """Fill ``target`` from byte ``offset`` on of the entry's file."""
        descriptor = self._descriptor(entry.file)
        while target:
            num_bytes = os.preadv(descriptor, [target], offset)
            if not num_bytes:
                raise CheckpointError(
                    f"{self._directory / entry.file}: ends at byte {offset}, within {entry.part} "
                    f"of {entry.tensor}; {_REMEDY}"
                )
            self.bytes_read += num_bytes
            offset += num_bytes
            target = target[num_bytes:]

    def _descriptor(self, file: str) -> int:
        if file not in self._descriptors:
            if len(self._descriptors) >= _MAX_OPEN_FILES:
                # Hundreds of ranks' files may exceed the limit of open files.
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            path = self._directory / file
            try:
                self._descriptors[file] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise CheckpointError(
                    f"{path}: cannot be read ({error.strerror}); {_REMEDY}"
                ) from error
        return self._descriptors[file]
