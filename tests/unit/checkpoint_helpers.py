"""Small checkpoints for the tests: uneven tensors, any world size, any point of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from rotescale.checkpoint.attempts import start_attempt
from rotescale.checkpoint.manifest import Manifest, ManifestHeader, Schedule, is_published
from rotescale.checkpoint.store import CheckpointStore
from rotescale.checkpoint.writer import SliceData, publish, write_rank_file
from rotescale.run_dir import CheckpointKind, CheckpointName, RunDir
from rotescale.tensors import PARTS, Part, TensorSlice, partition

SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (7, 5),
    "norm.weight": (3,),
    "scale": (),
    "mlp.weight": (2, 3, 4),
    "bias": (2,),
}


def values(name: str, part: Part) -> torch.Tensor:
    """The whole flattened tensor, (numel,) float32, different for each name and part."""
    seed = 1000 * list(SHAPES).index(name) + PARTS.index(part)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(math.prod(SHAPES[name]), generator=generator)


def rank_slices(rank: int, world_size: int, kind: CheckpointKind = "full") -> list[SliceData]:
    """What ZeRO-3 leaves on ``rank``, empty slices of small tensors included."""
    slices: list[SliceData] = []
    for part in PARTS if kind == "full" else PARTS[:1]:
        for name, shape in SHAPES.items():
            start, stop = partition(math.prod(shape), rank=rank, world_size=world_size)
            data = values(name, part)[start:stop]
            slices.append((TensorSlice(name, shape, start, stop), part, data))
    return slices


def header(**changes: Any) -> ManifestHeader:
    fields: dict[str, Any] = {
        "kind": "full",
        "phase": "memorize",
        "phase_index": 0,
        "step": 50,
        "cursor": 400,
        "phase_end": False,
        "schedule": Schedule(name="cosine", total_steps=100, warmup_steps=5, learning_rate=1e-4),
        "spec_digest": "0123456789abcdef",
        "base_digest": "fedcba9876543210",
        "attempt": 1,
        "world_size": 2,
        "versions": {"rotescale": "0.1"},
    }
    return ManifestHeader(**{**fields, **changes})


def save(directory: Path, *, head: ManifestHeader) -> Manifest:
    """A whole checkpoint, every rank's file and the manifest."""
    for rank in range(head.world_size):
        slices = rank_slices(rank, head.world_size, head.kind)
        write_rank_file(directory, rank=rank, world_size=head.world_size, slices=slices)
    return publish(directory, header=head, timeout_seconds=0)


def save_at(
    run_dir: RunDir,
    *,
    attempt: int,
    step: int,
    kind: CheckpointKind = "full",
    phase_index: int = 0,
    phase_end: bool = False,
) -> CheckpointName:
    """A checkpoint that ``attempt`` publishes at ``step``."""
    phase = ("memorize", "generalize")[phase_index]
    name = CheckpointName(attempt, phase_index, phase, step, kind)
    head = header(
        attempt=attempt,
        step=step,
        kind=kind,
        phase=phase,
        phase_index=phase_index,
        phase_end=phase_end,
        world_size=1,
    )
    save(run_dir.checkpoint(name), head=head)
    return name


def begin(run_dir: RunDir) -> CheckpointStore:
    """The store of a new attempt."""
    return CheckpointStore(run_dir, start_attempt(run_dir, world_size=1, host="here").number)


def published(run_dir: RunDir) -> list[tuple[int, int]]:
    """(attempt, step) of every published checkpoint."""
    return [
        (attempt, name.step)
        for attempt in run_dir.checkpoint_attempts()
        for name in run_dir.checkpoint_folders(attempt)
        if is_published(run_dir.checkpoint(name))
    ]
