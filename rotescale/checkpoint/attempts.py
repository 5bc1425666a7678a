"""Attempts: which start of training is the latest, and which checkpoints it can see. No torch."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from rotescale.checkpoint.manifest import (
    MANIFEST,
    DamagedManifestError,
    Manifest,
    is_published,
    load_manifest,
)
from rotescale.errors import CheckpointError
from rotescale.run_dir import CheckpointName, RunDir
from rotescale.storage import StoragePath, create_exclusive, make_folder, relative


class Attempt(BaseModel):
    """One start of training, and the checkpoint that it goes on from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: PositiveInt
    resumes: str | None
    """The manifest's path below the run's folder; None where training starts at step 0."""
    started: str
    """UTC, ISO 8601."""
    world_size: PositiveInt
    host: str
    branched_from: str | None = None
    """Folder or URL of the run whose checkpoints this attempt took over; None where it trained."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published checkpoint: its folder and its manifest."""

    directory: StoragePath
    manifest: Manifest


def _utc_now() -> datetime:
    return datetime.now(UTC)


def start_attempt(
    run_dir: RunDir,
    *,
    world_size: int,
    host: str | None = None,
    now: Callable[[], datetime] = _utc_now,
) -> Attempt:
    """Create the next attempt, naming the newest checkpoint that the previous one can see.

    One process calls this per start of training. Of several that start at once, each gets a
    number of its own, and the highest is the one that counts.
    """
    make_folder(run_dir.attempts_dir)
    outdated: set[int] = set()
    while True:
        numbers = run_dir.attempt_numbers()
        previous = max((n for n in numbers if n not in outdated), default=None)
        resumes = newest_manifest(run_dir, previous)
        attempt = Attempt(
            number=max(numbers, default=0) + 1,
            resumes=resumes,
            started=now().isoformat(),
            world_size=world_size,
            host=host if host is not None else socket.gethostname(),
        )
        data = (attempt.model_dump_json(indent=2) + "\n").encode()
        if not create_exclusive(run_dir.attempt(attempt.number), data):
            continue
        # Until the file existed, the previous attempt, if alive, could publish and prune. From
        # here on it prunes nothing, so a second look settles whether the choice still stands.
        if newest_manifest(run_dir, previous) == resumes:
            return attempt
        outdated.add(attempt.number)


def read_attempt(run_dir: RunDir, number: int) -> Attempt:
    """The attempt of that number."""
    path = run_dir.attempt(number)
    try:
        attempt = Attempt.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; restore the attempts folder") from None
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: damaged ({error.errors()[0]['msg']}); restore the attempts folder"
        ) from None
    if attempt.number != number:
        raise CheckpointError(f"{path}: says attempt {attempt.number}; restore the attempts folder")
    return attempt


def lineage(run_dir: RunDir, number: int) -> list[Attempt]:
    """The attempt and those whose work it goes on from, oldest first."""
    chain = [read_attempt(run_dir, number)]
    while (resumes := chain[0].resumes) is not None:
        parent = run_dir.manifest_name(resumes).attempt
        if parent >= chain[0].number:
            raise CheckpointError(
                f"{run_dir.attempt(chain[0].number)}: resumes from attempt {parent}, which is not "
                "earlier; restore the attempts folder"
            )
        chain.insert(0, read_attempt(run_dir, parent))
    return chain


def visible(run_dir: RunDir, number: int) -> list[CheckpointName]:
    """The published checkpoints that attempt ``number`` builds on, in the order of training.

    Its own, and those of each ancestor up to the one that its successor resumed from: what a
    superseded attempt published after that is not part of this history.
    """
    chain = lineage(run_dir, number)
    found: list[CheckpointName] = []
    for index, attempt in enumerate(chain):
        resumes = chain[index + 1].resumes if index + 1 < len(chain) else None
        limit = run_dir.manifest_name(resumes).point if resumes is not None else None
        found += [
            name
            for name in run_dir.checkpoint_folders(attempt.number)
            if (limit is None or name.point <= limit) and is_published(run_dir.checkpoint(name))
        ]
    return sorted(found, key=lambda name: (name.point, name.attempt))


def newest(run_dir: RunDir, number: int) -> Checkpoint | None:
    """The latest checkpoint from which attempt ``number`` can go on; None: from the start.

    That is a full one, or the weights at the end of a phase. Weights saved within a phase, for
    a branch, carry no moments and are no place to go on from. Raises DamagedManifestError where
    the latest cannot be told, or is it.
    """
    while True:
        try:
            for name in reversed(visible(run_dir, number)):
                checkpoint = open_checkpoint(run_dir, name)
                if name.kind == "full" or checkpoint.manifest.phase_end:
                    return checkpoint
            return None
        except FileNotFoundError:
            # Pruned since it was listed, so there is a newer one: look again.
            continue


def open_checkpoint(run_dir: RunDir, name: CheckpointName) -> Checkpoint:
    """The published checkpoint of that name; FileNotFoundError where it has no manifest.

    Raises DamagedManifestError for a manifest that is not as it was written, or not this one's.
    """
    path = run_dir.manifest(name)
    manifest = load_manifest(path)
    said = CheckpointName(
        attempt=manifest.attempt,
        phase_index=manifest.phase_index,
        phase=manifest.phase,
        step=manifest.step,
        kind=manifest.kind,
    )
    if said != name:
        raise DamagedManifestError(
            path,
            f"it is the manifest of {run_dir.checkpoint(said)}: if the folder was renamed, move "
            "it back",
        )
    return Checkpoint(run_dir.checkpoint(name), manifest)


def newest_manifest(run_dir: RunDir, number: int | None) -> str | None:
    """Path below the root of the manifest from which that attempt can go on; None: from the start.

    A damaged one too: only the attempt that starts may set it aside, once it has a number.
    """
    try:
        checkpoint = newest(run_dir, number) if number is not None else None
        path = checkpoint.directory / MANIFEST if checkpoint is not None else None
    except DamagedManifestError as error:
        path = error.path
    return None if path is None else relative(path, run_dir.root)
