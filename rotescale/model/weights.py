"""Reads any range of a model's parameters out of a Hugging Face folder, byte for byte no more."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rotescale.errors import DataError
from rotescale.model.build import ModelLayout
from rotescale.model.files import DTYPES, StoredTensor, stored_tensors
from rotescale.model.folder import find_tensor

_CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class NewRows:
    """Rows that replace or extend those of the stored vocabulary matrices."""

    rows: tuple[int, ...]
    """Row indices, ascending."""
    values: Mapping[str, torch.Tensor]
    """Parameter name -> ``(len(rows), *row shape)`` float32."""


class FolderReader:
    """Ranges of the parameters of one model, from its safetensors files and its new rows.

    Opens a file when the first range of it is read. ``bytes_read`` counts what came from files.
    """

    def __init__(self, folder: Path, *, layout: ModelLayout, new_rows: NewRows | None = None):
        self.bytes_read = 0
        self._layout = layout
        self._new_rows = new_rows or NewRows((), {})
        self._descriptors: dict[Path, int] = {}
        stored = stored_tensors(folder)
        self._entries = {
            name: find_tensor(name, stored, layout=layout, folder=folder) for name in layout.shapes
        }
        for name, shape in layout.shapes.items():
            self._check_covered(name, shape)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter, with the new rows; tied parameters once."""
        return self._layout.shapes

    def read(self, name: str, part: str, start: int, stop: int) -> torch.Tensor:
        """Elements ``[start, stop)`` of the flattened parameter: ``(stop - start,)`` float32, CPU.

        ``part`` is always ``"master"``: a model's folder holds no moments. The name of a tied
        output embedding reads the input embedding.
        """
        if part != "master":
            raise DataError(
                f"part {part!r} of {name!r}: a model's folder holds weights only; read the "
                "moments from a checkpoint"
            )
        name = self._layout.aliases.get(name, name)
        if name not in self._entries:
            raise DataError(f"{name!r} is no parameter of {self._layout.architecture}")
        size = math.prod(self._layout.shapes[name])
        assert 0 <= start <= stop <= size, f"[{start}, {stop}) of {size} elements of {name}"
        result = torch.empty(stop - start, dtype=torch.float32)
        entry = self._entries[name]
        stored_stop = max(start, min(stop, entry.num_elements))
        self._fill(result[: stored_stop - start], entry, start=start)
        self._overlay(result, name, start=start)
        return result

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> FolderReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_descriptors"):
            self.close()

    def _check_covered(self, name: str, shape: tuple[int, ...]) -> None:
        """Every row that the file lacks must be a new row, and row widths must agree."""
        entry = self._entries[name]
        lacking = set(range(entry.shape[0], shape[0])) if entry.shape and shape else set()
        covered = set(self._new_rows.rows) if name in self._new_rows.values else set()
        fits = entry.shape[1:] == shape[1:] and entry.shape[:1] <= shape[:1]
        if not fits or not lacking <= covered:
            raise DataError(
                f"{entry.file}: tensor {name!r} has shape {list(entry.shape)}, but the model "
                f"{list(shape)}; fetch and prepare the model again"
            )

    def _fill(self, result: torch.Tensor, entry: StoredTensor, *, start: int) -> None:
        """Set ``result`` to the stored elements from ``start`` on, by chunks of another dtype."""
        dtype = DTYPES[entry.dtype]
        if dtype == torch.float32:
            self._read_into(result, entry, start=start)
            return
        for offset in range(0, result.numel(), _CHUNK_ELEMENTS):
            target = result[offset : offset + _CHUNK_ELEMENTS]
            chunk = torch.empty(target.numel(), dtype=dtype)
            self._read_into(chunk, entry, start=start + offset)
            target.copy_(chunk)

    def _read_into(self, target: torch.Tensor, entry: StoredTensor, *, start: int) -> None:
        view = target.view(torch.uint8).numpy().data
        position = entry.begin + start * target.element_size()
        descriptor = self._descriptor(entry.file)
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], position + done)
            if count == 0:
                raise DataError(
                    f"{entry.file}: ends at byte {position + done}, before the tensor does; "
                    "it was changed while in use: fetch the model again"
                )
            done += count
        self.bytes_read += done

    def _descriptor(self, file: Path) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = os.open(file, os.O_RDONLY)
        return self._descriptors[file]

    def _overlay(self, result: torch.Tensor, name: str, *, start: int) -> None:
        values = self._new_rows.values.get(name)
        if values is None:
            return
        width = math.prod(values.shape[1:])
        stop = start + result.numel()
        for row, value in zip(self._new_rows.rows, values.reshape(-1, width), strict=True):
            first, last = max(start, row * width), min(stop, (row + 1) * width)
            if first < last:
                result[first - start : last - start] = value[
                    first - row * width : last - row * width
                ]
