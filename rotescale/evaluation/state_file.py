"""Hidden states of one stage as a safetensors file, written front to back and read by layer."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from rotescale.errors import DataError
from rotescale.evaluation.states import States, StateText
from rotescale.ranges import open_ranges
from rotescale.storage import StoragePath, make_folder, sync_folder, write_stream

FORMAT = "rotescale-representations"
VERSION = "1"

_MOST_HEADER_BYTES = 1 << 30
_DTYPES = {"float32": "F32", "float16": "F16"}
_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


def write_states(
    path: StoragePath, states: States, texts: Sequence[StateText], *, head: Mapping[str, Any]
) -> None:
    """Write states (num_layers, num_texts, hidden) with their texts and ``head``, a JSON object.

    A tensor per layer, ``layer-000`` for the embeddings; the rest is metadata, so that one file
    says it all and appears whole or not at all.
    """
    assert states.shape[1] == len(texts), (states.shape, len(texts))
    header = _header(states, texts, head=head)
    make_folder(path.parent)
    chunks = partial(_chunks, header, states)
    # A superseded attempt that has not noticed yet may write the same file.
    write_stream(path, chunks, num_bytes=len(header) + states.nbytes, contended=True)
    sync_folder(path.parent)


def sample_digest(texts: Sequence[StateText], *, dtype: str) -> str:
    """What tells a sample of texts, kept in that dtype, from any other."""
    rows = [asdict(text) for text in texts]
    return xxhash.xxh3_128_hexdigest(json.dumps([dtype, rows]).encode())


@dataclass(frozen=True, slots=True)
class _Layer:
    """Where a layer lies: bytes ``[begin, end)`` of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, int]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class StateFile:
    """The states of one stage; their values are read from storage as they are asked for."""

    path: StoragePath
    head: Mapping[str, Any]
    """Which stage, epoch and checkpoint, and which sample."""
    texts: tuple[StateText, ...]
    layers: tuple[_Layer, ...]

    def layer(self, number: int) -> npt.NDArray[np.float32]:
        """The states of one layer, (num_texts, hidden) float32.

        Raises DataError where there is no such layer, or the file ends before it does.
        """
        if not 0 <= number < len(self.layers):
            raise DataError(
                f"{self.path}: no layer {number}; the layers are 0 (the embeddings) to "
                f"{len(self.layers) - 1}"
            )
        entry = self.layers[number]
        raw = bytearray(entry.end - entry.begin)
        _read_into(self.path, raw, entry.begin)
        found = np.frombuffer(raw, dtype=entry.dtype).reshape(entry.shape)
        return found.astype(np.float32)


def open_states(path: StoragePath) -> StateFile:
    """The states at ``path``, of which only the header is read.

    Raises FileNotFoundError where there is no file, and DataError for one of another kind.
    """
    prefix = bytearray(8)
    _read_into(path, prefix, 0)
    (length,) = struct.unpack("<Q", prefix)
    try:
        if length > _MOST_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        raw = bytearray(length)
        _read_into(path, raw, 8)
        header = json.loads(raw)
        metadata = header.pop("__metadata__")
        if (metadata["format"], metadata["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {metadata['format']} {metadata['version']}")
        layers = tuple(_layer(header[name], start=8 + length) for name in sorted(header))
        texts = tuple(StateText(**row) for row in json.loads(metadata["texts"]))
        return StateFile(path, json.loads(metadata["head"]), texts, layers)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not {FORMAT} of version {VERSION} ({error}); delete it, and run the "
            "experiment again to have it made"
        ) from None


def _layer(entry: Mapping[str, Any], *, start: int) -> _Layer:
    begin, end = entry["data_offsets"]
    num_texts, hidden = entry["shape"]
    return _Layer(_NUMPY_DTYPES[entry["dtype"]], (num_texts, hidden), start + begin, start + end)


def _read_into(path: StoragePath, target: bytearray, offset: int) -> None:
    ranges = open_ranges(path.parent)
    try:
        num_bytes = ranges.read_into(path.name, memoryview(target), offset)
    finally:
        ranges.close()
    if num_bytes < len(target):
        raise DataError(
            f"{path}: truncated: it ends {len(target) - num_bytes} bytes early; delete it, and run "
            "the experiment again to have it made"
        )


def _header(states: States, texts: Sequence[StateText], *, head: Mapping[str, Any]) -> bytes:
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "head": json.dumps(head),
        "texts": json.dumps([asdict(text) for text in texts], ensure_ascii=False),
    }
    header: dict[str, object] = {"__metadata__": metadata}
    size = states[0].nbytes
    for number, layer in enumerate(states):
        header[f"layer-{number:03d}"] = {
            "dtype": _DTYPES[states.dtype.name],
            "shape": list(layer.shape),
            "data_offsets": [number * size, (number + 1) * size],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The data starts at a multiple of 8 bytes, so that readers may map it as it is.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _chunks(header: bytes, states: States) -> Iterator[memoryview | bytes]:
    """The bytes of the file, front to back."""
    yield header
    for layer in states:
        dtype = _NUMPY_DTYPES[_DTYPES[states.dtype.name]]
        yield np.ascontiguousarray(layer, dtype=dtype).view(np.uint8).reshape(-1).data
