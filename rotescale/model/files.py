"""Finds and checks the tensors in a folder's safetensors files by reading their headers alone."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rotescale.errors import DataError

DTYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
"""The dtypes that weights may be stored in, as safetensors names them."""

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_SAMPLE_BYTES = 1 << 16
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: bytes ``[begin, end)`` of ``file``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_elements(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder by name; DataError where a file is missing or damaged."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        found |= read_header(file)
    index = folder / INDEX_FILE
    if not (folder / WEIGHTS_FILE).is_file():
        for name, shard in _weight_map(index).items():
            if name not in found or found[name].file.name != shard:
                raise DataError(
                    f"{folder / shard}: tensor {name!r} is missing although {INDEX_FILE} names it; "
                    "fetch the model again"
                )
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, as transformers would choose them."""
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        raise DataError(
            f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there; give a model in the "
            "safetensors format (convert others with transformers' save_pretrained)"
        )
    files = [folder / name for name in sorted(set(_weight_map(index).values()))]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: missing although {INDEX_FILE} names it; fetch it again")
    return files


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file; DataError where the file is shorter than it says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise DataError(
                f"{file}: truncated: {size} bytes end before the header does; fetch it again"
            )
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise DataError(f"{file}: the header is not JSON ({error}); fetch it again") from error
    header.pop("__metadata__", None)
    return {
        name: _entry(file, name, value, data_start=8 + length, size=size)
        for name, value in header.items()
    }


def _entry(
    file: Path, name: str, value: dict[str, Any], *, data_start: int, size: int
) -> StoredTensor:
    begin, end = (data_start + offset for offset in value["data_offsets"])
    entry = StoredTensor(file, value["dtype"], tuple(value["shape"]), begin, end)
    if end > size:
        raise DataError(
            f"{file}: truncated: tensor {name!r} ends at byte {end}, the file at {size}; "
            "fetch it again"
        )
    dtype = DTYPES.get(entry.dtype)
    if dtype is not None and end - begin != entry.num_elements * dtype.itemsize:
        raise DataError(
            f"{file}: tensor {name!r} of shape {list(entry.shape)} and dtype {entry.dtype} takes "
            f"{end - begin} bytes, which do not fit; fetch it again"
        )
    return entry


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise as OSError what tokenizers and safetensors, written in Rust, tell of the disk in words.

    Only so is a full disk told like one, wherever it is met.
    """
    try:
        yield
    except Exception as error:
        found = _OS_ERROR.search(str(error))
        if found is None or isinstance(error, OSError):
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from error


def _weight_map(index: Path) -> dict[str, str]:
    try:
        mapping = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in mapping.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{index}: not an index of safetensors files ({error!r}); fetch it again"
        ) from error


def folder_digest(folder: Path) -> str:
    """Hex digest of the model in ``folder``, cheap: it reads headers and samples, not all weights.

    Configuration and tokenizer count in full; of each weight file the name, the size, the header
    and the first and last 64 KiB of the data.
    """
    digest = hashlib.sha256()
    weights = weight_files(folder)
    described = [folder / "config.json", *sorted(folder.glob("tokenizer*")), *weights]
    for file in described:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if file in weights:
                length = struct.unpack("<Q", stream.read(8))[0]
                digest.update(stream.read(length + _SAMPLE_BYTES))
                stream.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()[:16]
