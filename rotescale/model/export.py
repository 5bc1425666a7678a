"""Writes a Hugging Face folder shard by shard out of ranged reads, no more than a chunk in memory.

Each worker writes its share of the planned shards; then one of them finishes the folder, which is
complete when ``export.json`` exists.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from transformers import GenerationConfig

from rotescale.errors import StorageError
from rotescale.model.files import INDEX_FILE, WEIGHTS_FILE
from rotescale.model.prepare import EXPORT_FILE, KEY_ROWS_FILE, PREPARED_FILE, PreparedModel
from rotescale.storage import (
    StoragePath,
    file_size,
    make_folder,
    remove,
    sync_folder,
    write_atomic,
    write_stream,
)

MAX_SHARD_BYTES = 4 << 30
"""Size of one file of an exported model."""
CHUNK_ELEMENTS = 1 << 22
"""Elements that are read, converted and written at a time."""

_DTYPES = {"float32": ("F32", torch.float32), "bfloat16": ("BF16", torch.bfloat16)}


class RangeReader(Protocol):
    """Whatever reads ranges of parameters: a checkpoint, or a model's folder."""

    def read(self, name: str, part: str, start: int, stop: int) -> torch.Tensor:
        """Elements ``[start, stop)`` of the flattened parameter: float32, CPU."""
        ...


@dataclass(frozen=True)
class Shard:
    """One file of an exported model."""

    file: str
    shapes: Mapping[str, tuple[int, ...]]
    """Parameter name -> shape, in the file's order."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters in the file, in order."""
        return tuple(self.shapes)


def plan_shards(
    shapes: Mapping[str, tuple[int, ...]], *, dtype: str, max_shard_bytes: int
) -> list[Shard]:
    """Deal the parameters, in order, into files of at most ``max_shard_bytes`` of data.

    A parameter is never split: a larger one has a file of its own.
    """
    item_bytes = _DTYPES[dtype][1].itemsize
    groups: list[dict[str, tuple[int, ...]]] = []
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * item_bytes
        if not groups or used + size > max_shard_bytes:
            groups.append({})
            used = 0
        groups[-1][name] = shape
        used += size
    if len(groups) == 1:
        return [Shard(WEIGHTS_FILE, groups[0])]
    return [
        Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group)
        for number, group in enumerate(groups, start=1)
    ]


def write_shard(shard: Shard, *, reader: RangeReader, out: StoragePath, dtype: str) -> None:
    """Write one file of the model into ``out``, front to back, converting from float32."""
    make_folder(out)
    chunks = partial(_chunks, shard, reader=reader, dtype=dtype)
    num_bytes = _num_bytes(shard, dtype=dtype)
    write_stream(out / shard.file, chunks, num_bytes=num_bytes, contended=True)
    sync_folder(out)


def finish_export(
    prepared: PreparedModel,
    shards: Sequence[Shard],
    *,
    out: StoragePath,
    dtype: str,
    checkpoint: str | None = None,
) -> None:
    """Add index, configuration, tokenizer and generation defaults, and declare ``out`` complete.

    Call it once, after every shard is written. ``checkpoint`` says what the shards were read from.
    """
    sizes = {shard.file: _checked_size(shard, out=out, dtype=dtype) for shard in shards}
    item_bytes = _DTYPES[dtype][1].itemsize
    elements = sum(math.prod(shape) for shard in shards for shape in shard.shapes.values())
    if len(shards) > 1:
        weight_map = {name: shard.file for shard in shards for name in shard.names}
        metadata = {"total_parameters": elements, "total_size": elements * item_bytes}
        _write_json(out / INDEX_FILE, {"metadata": metadata, "weight_map": weight_map})
    raw = json.loads((prepared.folder / "config.json").read_text(encoding="utf-8"))
    raw.pop("torch_dtype", None)
    _write_json(out / "config.json", raw | {"dtype": dtype})
    for name, data in _beside_weights(prepared).items():
        write_atomic(out / name, data)
    record = {
        "checkpoint": checkpoint,
        "dtype": dtype,
        "files": sizes,
        "key_tokens": list(prepared.token_ids),
        "prepared_digest": prepared.digest,
        "wording": asdict(prepared.wording),
    }
    _write_json(out / EXPORT_FILE, record)


def is_exported(out: StoragePath, checkpoint: str | None = None) -> bool:
    """Whether ``out`` holds a whole exported model: of that checkpoint, or None: of any."""
    try:
        record = json.loads((out / EXPORT_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return checkpoint is None or bool(record.get("checkpoint") == checkpoint)


def discard_export(out: StoragePath) -> None:
    """Declare that ``out`` holds no export; what is there stays until it is replaced.

    Of workers that died while they wrote, the unfinished shards go.
    """
    remove(out / EXPORT_FILE)
    if isinstance(out, Path):
        remove(*out.glob(".*.tmp"))


def _header(shard: Shard, *, dtype: str) -> bytes:
    code, torch_dtype = _DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shard.shapes.items():
        end = offset + math.prod(shape) * torch_dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data starts at a multiple of 8 bytes, so that readers may map it as it is.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _chunks(shard: Shard, *, reader: RangeReader, dtype: str) -> Iterator[memoryview | bytes]:
    """The bytes of the file, front to back, read and converted as they are asked for."""
    torch_dtype = _DTYPES[dtype][1]
    yield _header(shard, dtype=dtype)
    for name, shape in shard.shapes.items():
        size = math.prod(shape)
        for start in range(0, size, CHUNK_ELEMENTS):
            stop = min(start + CHUNK_ELEMENTS, size)
            chunk = reader.read(name, "master", start, stop).to(torch_dtype).contiguous()
            assert chunk.numel() == stop - start, f"{name}: {chunk.numel()} of {stop - start}"
            yield chunk.view(torch.uint8).numpy().data


def _num_bytes(shard: Shard, *, dtype: str) -> int:
    elements = sum(math.prod(shape) for shape in shard.shapes.values())
    return len(_header(shard, dtype=dtype)) + elements * _DTYPES[dtype][1].itemsize


def _checked_size(shard: Shard, *, out: StoragePath, dtype: str) -> int:
    """Bytes of the written shard; StorageError where it is missing or of another size."""
    file = out / shard.file
    expected, actual = _num_bytes(shard, dtype=dtype), file_size(file)
    if actual != expected:
        raise StorageError(
            f"{file}: {'missing' if actual is None else f'{actual} bytes'}, not the {expected} "
            "bytes of this shard; the worker that writes it failed: export again"
        )
    return expected


def _beside_weights(prepared: PreparedModel) -> dict[str, bytes]:
    """The tokenizer's files by name, and generation_config.json: the base's, or the default."""
    not_tokenizer = {"config.json", KEY_ROWS_FILE, PREPARED_FILE}
    found = {
        file.name: file.read_bytes()
        for file in sorted(prepared.folder.iterdir())
        if file.name not in not_tokenizer and not file.name.startswith(".")
    }
    if "generation_config.json" not in found:
        with tempfile.TemporaryDirectory() as folder:
            GenerationConfig.from_model_config(prepared.config()).save_pretrained(folder)
            found |= {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    return found


def _write_json(file: StoragePath, value: Mapping[str, object]) -> None:
    write_atomic(file, (json.dumps(value, indent=2) + "\n").encode())
