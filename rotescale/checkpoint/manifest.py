"""The manifest: what a published checkpoint holds, and which bytes of which file. No torch."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

import xxhash
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from rotescale.errors import CheckpointError
from rotescale.run_dir import MANIFEST as MANIFEST
from rotescale.run_dir import CheckpointKind
from rotescale.storage import StoragePath
from rotescale.tensors import PARTS, Part

FORMAT = "rotescale-checkpoint"
VERSION = 3
BYTES_PER_ELEMENT = 4
"""Everything is float32."""
DIGEST_BYTES = 1 << 20
"""How much of a slice one digest covers: a reader of part of a slice verifies whole blocks."""

_DIGEST = re.compile(rb',"digest":"([0-9a-f]{32})"}\n\Z')
_KIND_PARTS: dict[CheckpointKind, frozenset[Part]] = {
    "full": frozenset(PARTS),
    "weights": frozenset({"master"}),
}


class DamagedManifestError(CheckpointError):
    """A manifest that is not as it was written; the checkpoint before it may be whole."""

    def __init__(self, path: StoragePath, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.damage = f"{path}: damaged: {problem}"

    def __str__(self) -> str:
        remedy = "delete this file, and training resumes from the checkpoint before it"
        return f"{self.damage}; {remedy}"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Frozen):
    """One file of the checkpoint."""

    name: str
    num_bytes: NonNegativeInt
    digest: str
    """xxh3_128 of the whole file, in hex."""


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SliceEntry:
    """The elements ``[start, stop)`` of a flattened float32 tensor, and where their bytes lie.

    A dataclass with slots: a large model on many workers has a million of them.
    """

    tensor: str
    part: Part
    shape: tuple[NonNegativeInt, ...]
    start: NonNegativeInt
    stop: PositiveInt
    file: str
    begin: NonNegativeInt
    end: PositiveInt
    """``[begin, end)`` counts bytes from the first byte of the file."""
    digests: tuple[str, ...]
    """xxh3_64 of each ``DIGEST_BYTES`` of the slice, the last block shorter, in hex."""


class Schedule(_Frozen):
    """The learning-rate schedule that the phase follows."""

    name: str
    total_steps: NonNegativeInt
    warmup_steps: NonNegativeInt
    learning_rate: float
    """The peak."""


class ManifestHeader(_Frozen):
    """Everything about a checkpoint but its bytes."""

    format: Literal["rotescale-checkpoint"] = "rotescale-checkpoint"
    version: Literal[3] = 3
    kind: CheckpointKind
    phase: str
    phase_index: NonNegativeInt
    step: NonNegativeInt
    cursor: NonNegativeInt
    phase_end: bool
    """Whether the phase is over here; such a checkpoint is always kept."""
    schedule: Schedule
    spec_digest: str
    base_digest: str
    """Digest of the model that the run started from, the source of every frozen tensor."""
    attempt: PositiveInt
    world_size: PositiveInt
    versions: dict[str, str]
    """Of rotescale, torch, deepspeed and transformers."""
    lora_alpha: PositiveFloat | None = None
    """What scales the adapters, which no tensor shows; None, and not written, where it has none."""


class Manifest(ManifestHeader):
    """A published checkpoint: its header, its files, and every slice of every tensor."""

    files: tuple[FileEntry, ...]
    slices: tuple[SliceEntry, ...]

    @model_validator(mode="after")
    def _covers_every_tensor_once(self) -> Manifest:
        sizes = {file.name: file.num_bytes for file in self.files}
        if len(sizes) != len(self.files):
            raise ValueError("a file is listed twice")
        by_tensor: dict[tuple[str, Part], list[SliceEntry]] = defaultdict(list)
        by_file: dict[str, list[SliceEntry]] = defaultdict(list)
        parts: dict[str, set[Part]] = defaultdict(set)
        for entry in self.slices:
            by_tensor[entry.tensor, entry.part].append(entry)
            by_file[entry.file].append(entry)
            parts[entry.tensor].add(entry.part)
        for tensor, found in parts.items():
            if found != _KIND_PARTS[self.kind]:
                raise ValueError(f"{tensor}: a {self.kind} checkpoint cannot hold {sorted(found)}")
        for (tensor, part), entries in by_tensor.items():
            _check_coverage(f"{part} of {tensor}", entries)
        for name, entries in by_file.items():
            if name not in sizes:
                raise ValueError(f"slices lie in {name}, which is not listed as a file")
            _check_bytes(name, entries, num_bytes=sizes[name])
        return self


def _check_coverage(what: str, entries: Iterable[SliceEntry]) -> None:
    """Refuse gaps, overlaps and disagreeing shapes; ``entries`` are of one tensor and part."""
    ordered = sorted(entries, key=lambda entry: entry.start)
    shape = ordered[0].shape
    position = 0
    for entry in ordered:
        if entry.shape != shape:
            raise ValueError(f"{what}: slices disagree on the shape, {shape} and {entry.shape}")
        if entry.start != position:
            word = "no slice holds" if entry.start > position else "two slices hold"
            low, high = sorted((position, entry.start))
            raise ValueError(f"{what}: {word} the elements [{low}, {high})")
        position = entry.stop
    if position != math.prod(shape):
        raise ValueError(f"{what}: slices end at {position} of {math.prod(shape)} elements")


def _check_bytes(name: str, entries: Iterable[SliceEntry], *, num_bytes: int) -> None:
    """Refuse byte ranges of the wrong length, that overlap, or that leave the file ``name``."""
    ordered = sorted(entries, key=lambda entry: entry.begin)
    for entry in ordered:
        expected = BYTES_PER_ELEMENT * (entry.stop - entry.start)
        if entry.end - entry.begin != expected:
            raise ValueError(
                f"{entry.part} of {entry.tensor}: {entry.end - entry.begin} bytes in {name} for "
                f"{expected} bytes of elements"
            )
        num_blocks = -(-expected // DIGEST_BYTES)
        if len(entry.digests) != num_blocks:
            raise ValueError(
                f"{entry.part} of {entry.tensor}: {len(entry.digests)} digests for "
                f"{num_blocks} blocks"
            )
    for left, right in pairwise(ordered):
        if right.begin < left.end:
            raise ValueError(f"{name}: {left.tensor} and {right.tensor} share bytes")
    if ordered[-1].end > num_bytes:
        raise ValueError(f"{name}: slices reach byte {ordered[-1].end} of {num_bytes}")


def check_base(
    directory: StoragePath, manifest: Manifest, *, digest: str, prepared: StoragePath
) -> None:
    """Refuse the checkpoint in ``directory`` where it began from another model than ``digest``.

    Frozen tensors, configuration and tokenizer come from the prepared model in ``prepared``.
    """
    if manifest.base_digest != digest:
        raise CheckpointError(
            f"{directory}: of a model with digest {manifest.base_digest}, but the run's prepared "
            f"model has {digest}; restore {prepared}"
        )


def check_alpha(directory: StoragePath, manifest: Manifest, *, alpha: float | None) -> None:
    """Refuse the checkpoint in ``directory`` where its adapters were scaled by another alpha.

    Whether there are adapters at all, its tensors say.
    """
    if None not in (manifest.lora_alpha, alpha) and manifest.lora_alpha != alpha:
        raise CheckpointError(
            f"{directory}: its adapters were trained with model.lora.alpha {manifest.lora_alpha}, "
            f"not {alpha}; go on with the spec that it was written under"
        )


def manifest_bytes(manifest: Manifest) -> bytes:
    """The file's content, compact: a large model on many workers has a million slices.

    The last field, ``digest``, is the xxh3_128 of everything before it, in hex.
    """
    text = manifest.model_dump_json(exclude_none=True).encode().removesuffix(b"}")
    return text + f',"digest":"{xxhash.xxh3_128_hexdigest(text)}"}}\n'.encode()


def is_published(directory: StoragePath) -> bool:
    """Whether a manifest lies in ``directory``; nothing else makes it a checkpoint.

    It appears whole, so one that is not was damaged later, and says so when it is read.
    """
    return (directory / MANIFEST).exists()


def load_manifest(path: StoragePath) -> Manifest:
    """Read and check a manifest file.

    Raises FileNotFoundError where there is none, DamagedManifestError where it is not as it was
    written, and CheckpointError, with the remedy, for one of another format.
    """
    text = path.read_bytes()
    end = _DIGEST.search(text, max(len(text) - 64, 0))
    if end is None:
        _refuse_other_format(path, text)
        raise DamagedManifestError(path, f"no digest at its end, byte {len(text)}")
    body = text[: end.start()]
    if xxhash.xxh3_128_hexdigest(body) != end[1].decode():
        raise DamagedManifestError(path, "its bytes are not those of its digest")
    try:
        return Manifest.model_validate_json(body + b"}")
    except ValidationError as error:
        _refuse_other_format(path, text)
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise DamagedManifestError(path, f"{field + ': ' if field else ''}{message}") from None


def _refuse_other_format(path: StoragePath, text: bytes) -> None:
    try:
        raw = json.loads(text)
    except ValueError:
        return
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: no {FORMAT}; give the folder of a checkpoint that rotescale has written"
        )
    if raw.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: version {raw.get('version')!r} of the format, and this rotescale reads "
            f"version {VERSION}; use the rotescale that wrote it: {raw.get('versions')}"
        )
