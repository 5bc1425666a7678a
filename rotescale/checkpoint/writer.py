"""Writing a checkpoint: each rank its own file and marker, then rank 0 the manifest, last."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from rotescale.checkpoint.manifest import (
    BYTES_PER_ELEMENT,
    DIGEST_BYTES,
    MANIFEST,
    FileEntry,
    Manifest,
    ManifestHeader,
    SliceEntry,
    is_published,
    manifest_bytes,
)
from rotescale.direct import ALIGNMENT, joined
from rotescale.errors import CheckpointError
from rotescale.object_store import RemotePath
from rotescale.run_dir import announce
from rotescale.storage import (
    StoragePath,
    file_size,
    make_folder,
    remove,
    write_atomic,
    write_stream,
)
from rotescale.tensors import Part, TensorSlice

_CHUNK_BYTES = 16 * DIGEST_BYTES
_POLL_SECONDS = 0.05
_REMOTE_POLL_SECONDS = 0.25
"""A store charges for every look."""

SliceData = tuple[TensorSlice, Part, torch.Tensor]
"""A slice, which part of the tensor it is, and its elements: (num_elements,) float32 on the CPU."""


class RankMarker(BaseModel):
    """What one rank has written, whole and synced: its file and the slices in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: NonNegativeInt
    world_size: PositiveInt
    file: FileEntry
    slices: tuple[SliceEntry, ...]


def write_rank_file(
    directory: StoragePath,
    *,
    rank: int,
    world_size: int,
    slices: Sequence[SliceData],
    halfway: Callable[[], None] = lambda: None,
) -> RankMarker:
    """Write this rank's slices as one safetensors file of flat tensors, then its marker.

    Not collective, and safe in a background thread as long as nobody changes the tensors. Empty
    slices are left out. ``halfway`` is called before the middle slice. Raises StorageError where
    the disk refuses, and leaves no partial file.
    """
    if is_published(directory):
        raise CheckpointError(
            f"{directory}: is published already, and what is published never changes; save at "
            "another step or start a new attempt"
        )
    path = directory / f"{_stem(rank, world_size)}.safetensors"
    make_folder(directory)
    filled = [item for item in slices if item[0].num_elements]
    header, places = _layout(filled)
    tensors = [tensor for _, _, tensor in filled]
    file, digests = _write_front_to_back(path, header, tensors, halfway=halfway)
    entries = tuple(
        SliceEntry(
            tensor=piece.name,
            part=part,
            shape=piece.shape,
            start=piece.start,
            stop=piece.stop,
            file=path.name,
            begin=begin,
            end=end,
            digests=found,
        )
        for (piece, part, _), (begin, end), found in zip(filled, places, digests, strict=True)
    )
    marker = RankMarker(rank=rank, world_size=world_size, file=file, slices=entries)
    # Also syncs the folder, and with it the rename of the data file.
    write_atomic(_marker_path(directory, rank, world_size), marker.model_dump_json().encode())
    return marker


def publish(
    directory: StoragePath,
    *,
    header: ManifestHeader,
    timeout_seconds: float = 1800.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Manifest:
    """Wait for every rank's marker, then write the manifest, which makes the checkpoint exist.

    Rank 0 calls this once; it uses no collective, so it can run in a background thread. Raises
    TimeoutError where a rank's file is missing at the deadline, and CheckpointError where it has
    another size.
    """
    world_size = header.world_size
    deadline = clock() + timeout_seconds
    markers: list[RankMarker] = []
    while len(markers) < world_size:
        marker = _read_marker(directory, len(markers), world_size)
        if marker is not None:
            markers.append(marker)
        elif clock() >= deadline:
            missing = [
                rank for rank in range(world_size) if not _read_marker(directory, rank, world_size)
            ]
            # Not the user's error: whoever runs the workers replaces them, and the run resumes.
            raise TimeoutError(
                f"{directory}: after {timeout_seconds:g} s rank(s) {missing} of {world_size} have "
                "written nothing; see their logs, or allow more time for saving"
            )
        else:
            sleep(_REMOTE_POLL_SECONDS if isinstance(directory, RemotePath) else _POLL_SECONDS)
    manifest = _combine(directory, header, markers)
    announce(directory)
    write_atomic(directory / MANIFEST, manifest_bytes(manifest))
    # The manifest says it all; a reader never looks at markers.
    remove(*(_marker_path(directory, marker.rank, world_size) for marker in markers))
    return manifest


def _combine(
    directory: StoragePath, header: ManifestHeader, markers: Sequence[RankMarker]
) -> Manifest:
    for marker in markers:
        path = directory / marker.file.name
        found = file_size(path)
        if found != marker.file.num_bytes:
            raise CheckpointError(
                f"{path}: {found} bytes where rank {marker.rank} wrote {marker.file.num_bytes}; "
                "check that all workers see the same storage"
            )
    try:
        return Manifest(
            **dict(header),
            files=tuple(marker.file for marker in markers),
            slices=tuple(entry for marker in markers for entry in marker.slices),
        )
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise CheckpointError(
            f"{directory}: the ranks' slices make no whole model: {message}; all ranks must train "
            "the same model at the same world size"
        ) from None


def _read_marker(directory: StoragePath, rank: int, world_size: int) -> RankMarker | None:
    path = _marker_path(directory, rank, world_size)
    try:
        return RankMarker.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: damaged ({error.errors()[0]['msg']}); check the storage"
        ) from None


def _layout(slices: Sequence[SliceData]) -> tuple[bytes, list[tuple[int, int]]]:
    """The safetensors header, and the bytes ``[begin, end)`` of the file where each slice will lie.

    The format: 8 bytes of header length, a JSON header padded with spaces, then the tensors
    back to back at offsets that count from the end of the header. That is at a multiple of
    ``ALIGNMENT``, so that a snapshot in aligned memory can be written from where it is.
    """
    tensors: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places: list[tuple[int, int]] = []
    offset = 0
    for piece, part, tensor in slices:
        key = f"{part}/{piece.name}"
        assert key not in tensors, f"two slices of {key} on one rank"
        assert tensor.dtype == torch.float32, f"{key}: {tensor.dtype}"
        assert tensor.shape == (piece.num_elements,), f"{key}: {tensor.shape}"
        end = offset + BYTES_PER_ELEMENT * piece.num_elements
        tensors[key] = {
            "dtype": "F32",
            "shape": [piece.num_elements],
            "data_offsets": [offset, end],
        }
        places.append((offset, end))
        offset = end
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    first = 8 + len(text)
    header = len(text).to_bytes(8, "little") + text
    return header, [(first + begin, first + end) for begin, end in places]


def _write_front_to_back(
    path: StoragePath,
    header: bytes,
    tensors: Sequence[torch.Tensor],
    *,
    halfway: Callable[[], None],
) -> tuple[FileEntry, list[tuple[str, ...]]]:
    """Write ``header`` and the (n,) float32 ``tensors``; the file appears whole or not at all.

    Returns the file's size and digest, and the digests of each tensor's blocks.
    """
    whole = xxhash.xxh3_128()
    digests: list[tuple[str, ...]] = []

    def chunks() -> Iterator[memoryview]:
        whole.reset()
        digests.clear()
        whole.update(header)
        yield memoryview(header)
        yield from joined(blocks(), most_bytes=_CHUNK_BYTES)

    def blocks() -> Iterator[memoryview]:
        for number, tensor in enumerate(tensors):
            if number == len(tensors) // 2:
                halfway()
            view = tensor.detach().contiguous().numpy().data.cast("B")
            found: list[str] = []
            for start in range(0, len(view), DIGEST_BYTES):
                block = view[start : start + DIGEST_BYTES]
                whole.update(block)
                # The second look at a block finds it in the cache.
                found.append(xxhash.xxh3_64_hexdigest(block))
                yield block
            digests.append(tuple(found))

    num_bytes = len(header) + sum(BYTES_PER_ELEMENT * tensor.numel() for tensor in tensors)
    write_stream(path, chunks, num_bytes=num_bytes)
    return FileEntry(name=path.name, num_bytes=num_bytes, digest=whole.hexdigest()), digests


def _stem(rank: int, world_size: int) -> str:
    return f"rank-{rank:05d}-of-{world_size:05d}"


def _marker_path(directory: StoragePath, rank: int, world_size: int) -> StoragePath:
    return directory / f"{_stem(rank, world_size)}.json"
