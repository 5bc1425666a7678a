"""The checkpoints of an attempt as all its ranks see them: found, read and set aside together."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from rotescale.checkpoint.attempts import Checkpoint
from rotescale.checkpoint.manifest import (
    MANIFEST,
    DamagedManifestError,
    Manifest,
    check_alpha,
    check_base,
    load_manifest,
)
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.checkpoint.store import CheckpointStore
from rotescale.errors import CheckpointError
from rotescale.model.frozen import WholeReader
from rotescale.model.lora import LoraReader
from rotescale.model.prepare import PreparedModel
from rotescale.model.trained import whole_reader
from rotescale.run_dir import RunDir
from rotescale.spec import ModelSpec
from rotescale.storage import StoragePath, relative
from rotescale.team import Team


class DamagedCheckpointError(Exception):
    """All ranks: a checkpoint was damaged and has been set aside; start a new attempt.

    Not the user's error: the new attempt goes on from the checkpoint before it.
    """


class SupersededError(Exception):
    """All ranks: a later attempt has started. Leave, and touch nothing that the two share."""


Block = tuple[str, str, int, int]
"""Name, part, start and stop of elements in a checkpoint."""


@dataclass(frozen=True, slots=True)
class Found:
    """A published checkpoint as rank 0 sees it: enough for all ranks to go on alike."""

    directory: StoragePath
    name: str
    """Its path below the run's root, which no other checkpoint ever has."""
    phase_index: int
    step: int
    phase_end: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, root: StoragePath) -> Found:
        """What ``checkpoint`` of the run in ``root`` comes to."""
        directory, manifest = checkpoint.directory, checkpoint.manifest
        name = relative(directory, root)
        return cls(directory, name, manifest.phase_index, manifest.step, manifest.phase_end)


@dataclass(frozen=True)
class TeamCheckpoints:
    """What storage shows, asked on rank 0 for all, and the damage that any of them meets."""

    run_dir: RunDir
    team: Team
    store: CheckpointStore
    prepared: PreparedModel
    model: ModelSpec
    """What it does not train is in no checkpoint."""

    def newest(self) -> Found | None:
        """Collective: every rank calls this. The checkpoint to go on from; None: the start."""
        return self._found(self.store.newest)

    def has_ended(self, phase_index: int) -> bool:
        """Collective: every rank calls this. Whether training stands at the phase's end or later.

        Once a later phase has begun, nothing but a missing export needs this one's end.
        """
        newest = self.newest()
        return newest is not None and (newest.phase_index, newest.phase_end) >= (phase_index, True)

    def phase_end(self, phase: str) -> Found | None:
        """Collective: every rank calls this. The checkpoint at the phase's end; None: lost."""
        return self._found(lambda: self.store.phase_end(phase))

    def need(self, end: Found | None, phase: str) -> Found:
        """The phase's end, for an export or evaluation that is missing."""
        if end is None:
            raise CheckpointError(
                f"{self.run_dir.checkpoints_dir}: the checkpoint at the end of phase {phase} is "
                "lost, and so is its export or evaluation; restore models and evaluations, or "
                "delete the checkpoints of later phases, and it is trained again"
            )
        return end

    def last_good(self) -> str:
        """On this rank alone: the newest checkpoint, for a message."""
        try:
            newest = self.store.newest()
        except DamagedManifestError as error:
            return error.damage
        return "none" if newest is None else Found.of(newest, root=self.run_dir.root).name

    @contextmanager
    def reader(self, directory: StoragePath) -> Iterator[WholeReader | LoraReader]:
        """Collective: every rank calls this. Reads the whole model, to the end whatever it meets.

        Damage that it has met is agreed on when it is closed.
        """
        damage: list[str] = []
        manifest: Manifest | None = None
        try:
            manifest = load_manifest(directory / MANIFEST)
        except DamagedManifestError as error:
            damage.append(error.damage)
        self._refuse_damage(directory, damage)
        assert manifest is not None
        prepared = self.prepared
        check_base(directory, manifest, digest=prepared.digest, prepared=prepared.folder)
        check_alpha(directory, manifest, alpha=self.model.lora_alpha)
        trained = CheckpointReader(directory, manifest, on_damage=damage.append)
        with whole_reader(trained, self.model, prepared) as reader:
            yield reader
        self._refuse_damage(directory, damage, block=trained.damaged)

    def leave_if_superseded(self) -> None:
        """Collective: every rank calls this."""
        if not self.team.agreed(self.store.is_newest):
            message = f"attempt {self.team.attempt} leaves: a later one has started"
            self.team.event("superseded", message)
            raise SupersededError(message)

    def _found(self, look: Callable[[], Checkpoint | None]) -> Found | None:
        """Collective: every rank calls this. What rank 0 sees, or the same damage for all."""

        def ask() -> Found | DamagedManifestError | None:
            try:
                found = look()
            except DamagedManifestError as error:
                return error
            return None if found is None else Found.of(found, root=self.run_dir.root)

        answer: Found | DamagedManifestError | None = self.team.on_rank_0(ask)
        if isinstance(answer, DamagedManifestError):
            self._set_aside(answer.path.parent, answer.damage)
        return answer

    def _refuse_damage(
        self, directory: StoragePath, damage: list[str], *, block: Block | None = None
    ) -> None:
        """Collective: every rank calls this. What any rank found ends the attempt for all.

        The checkpoint is set aside once rank 0 has found it too. Else it may be the disk or the
        memory of one host, and an OSError has the processes replaced.
        """
        told = self.team.engine.all_gather((damage[0], block) if damage else None)
        found: list[tuple[str, Block | None]] = [each for each in told if each is not None]
        if not found:
            return
        first = found[0][0]
        if not self.team.agreed(lambda: any(_is_damaged(directory, block) for _, block in found)):
            raise OSError(errno.EIO, f"{first}; but rank 0 reads it well")
        self._set_aside(directory, first)

    def _set_aside(self, directory: StoragePath, damage: str) -> NoReturn:
        """Collective: every rank calls this."""
        if not self.team.agreed(self.store.set_aside, directory):
            # Its successor may have removed what this one misses.
            raise SupersededError(damage)
        self.team.event("damaged", f"{damage}; set aside: an earlier checkpoint is used")
        raise DamagedCheckpointError(damage)


def _is_damaged(directory: StoragePath, block: Block | None) -> bool:
    """Whether the manifest, and of the slices that block, are not as they were written."""
    try:
        with CheckpointReader(directory, load_manifest(directory / MANIFEST)) as reader:
            if block is not None:
                reader.read(*block)
    except (CheckpointError, FileNotFoundError):
        return True
    return False
