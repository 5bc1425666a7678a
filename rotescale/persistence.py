"""What an attempt keeps on storage and gets back: saves, loads, exports, and damage met there."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import NoReturn

from rotescale.checkpoint.attempts import Checkpoint
from rotescale.checkpoint.manifest import (
    MANIFEST,
    DamagedManifestError,
    Manifest,
    ManifestHeader,
    Schedule,
    check_base,
    load_manifest,
)
from rotescale.checkpoint.saver import CheckpointSaver, SaveReport, SaveRequest
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.checkpoint.store import CheckpointStore
from rotescale.engine.base import Engine, SliceReader
from rotescale.errors import CheckpointError
from rotescale.faults import fault_point
from rotescale.model.export import (
    MAX_SHARD_BYTES,
    discard_export,
    finish_export,
    is_exported,
    plan_shards,
    write_shard,
)
from rotescale.model.frozen import WholeReader
from rotescale.model.prepare import PreparedModel
from rotescale.phase_plan import PhasePlan
from rotescale.records import RecordReader, RecordWriter, best_steps
from rotescale.run_dir import CheckpointKind, RunDir
from rotescale.spec import ExperimentSpec
from rotescale.storage import StoragePath, relative
from rotescale.team import Team
from rotescale.tensors import PARTS

_LAST_SAVE_SECONDS = 120.0


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
class Persistence:
    """Joins the engine, which names its slices, and the store, which moves bytes; on one rank."""

    spec: ExperimentSpec
    run_dir: RunDir
    team: Team
    engine: Engine
    store: CheckpointStore
    saver: CheckpointSaver
    prepared: PreparedModel
    records: RecordWriter
    versions: dict[str, str]

    def save(
        self,
        plan: PhasePlan,
        step: int,
        *,
        kind: CheckpointKind,
        phase_end: bool,
        urgent: bool = False,
        published: Callable[[], None] = lambda: None,
    ) -> bool:
        """Collective: every rank calls this. Begin a save; the end of a phase waits for its end.

        ``published`` is called on rank 0, in the background, once the manifest is there. False,
        and nothing begun, where the spec skips a save that comes while another is in flight,
        unless it is the end of a phase or ``urgent``. Raises SupersededError on all ranks alike.
        """
        self._leave_if_superseded()
        may_skip = self.spec.checkpoints.while_saving == "skip" and not (phase_end or urgent)
        if may_skip and self.engine.all_sum([float(self.saver.busy)])[0]:
            message = f"{plan.spec.name} step {step}: the save before is in flight"
            self.team.event("skipped", message)
            return False
        phase = plan.spec
        directory = self.store.directory(phase.name, phase_index=plan.index, step=step, kind=kind)
        self.saver.start(
            SaveRequest(
                directory=directory,
                header=self._header(plan, step, kind=kind, phase_end=phase_end),
                state=self.engine.state(PARTS if kind == "full" else PARTS[:1]),
                # A resumed run repeats no step before the checkpoint, so their rows must be there.
                before_publish=self.records.flush,
                after_publish=partial(self._after_publish, published),
                done=partial(self._saved, phase.name, step, kind),
            )
        )
        if phase_end:
            self.saver.finish()
            # The next stage reads the manifest: rank 0 has published it before all go on.
            self.engine.all_sum([0.0])
        return True

    def last_good(self) -> str:
        """On this rank alone: the newest checkpoint, for a message; waits for one in flight."""
        # The save in flight, if any, is still worth having: it may be the last good one.
        with suppress(Exception):
            self.saver.finish(timeout_seconds=_LAST_SAVE_SECONDS)
        try:
            newest = self.store.newest()
        except DamagedManifestError as error:
            return error.damage
        return "none" if newest is None else Found.of(newest, root=self.run_dir.root).name

    def newest(self) -> Found | None:
        """Collective: every rank calls this. The checkpoint to go on from; None: the start."""
        return self._found(self.store.newest)

    def has_ended(self, plan: PhasePlan) -> bool:
        """Collective: every rank calls this. Whether training stands at the phase's end or later.

        Once a later phase has begun, nothing but a missing export needs this one's end.
        """
        newest = self.newest()
        return newest is not None and (newest.phase_index, newest.phase_end) >= (plan.index, True)

    def phase_end(self, phase: str) -> Found | None:
        """Collective: every rank calls this. The checkpoint at the phase's end; None: lost."""
        return self._found(lambda: self.store.phase_end(phase))

    def load_base(self) -> None:
        """Collective: every rank calls this. The prepared model, with a new optimizer."""
        with self.prepared.reader() as reader:
            self._load(reader, optimizer_step=None)

    def load_checkpoint(self, directory: StoragePath, *, optimizer_step: int | None) -> None:
        """Collective: every rank calls this. Raises DamagedCheckpointError on all ranks alike.

        With ``optimizer_step`` the moments are read too; None starts a new optimizer.
        """
        with self._reader(directory) as reader:
            self._load(reader, optimizer_step=optimizer_step)

    @cached_property
    def _record_reader(self) -> RecordReader:
        """Reads each segment of the records once, however often they are asked for."""
        return RecordReader(self.run_dir)

    def export(self, phase: str, end: Found | None, *, going_on: Callable[[], None]) -> None:
        """Collective: every rank calls this. A Hugging Face folder of the phase's ``end``, once.

        Where the end is lost, the export that was made of it stays. ``going_on`` is called after
        each file. Raises SupersededError and DamagedCheckpointError on all ranks alike.
        """
        folder = self.run_dir.model_folder(phase)
        if self.team.agreed(is_exported, folder, None if end is None else end.name):
            return
        end = self.need(end, phase)
        # Attempts have one place for exports between them.
        self._leave_if_superseded()
        dtype = self.spec.model.export_dtype
        # Of another checkpoint's export nothing may be taken for this one's.
        self.team.on_rank_0(lambda: discard_export(folder))
        with self._reader(end.directory) as reader:
            shards = plan_shards(reader.shapes, dtype=dtype, max_shard_bytes=MAX_SHARD_BYTES)
            for shard in shards[self.engine.rank :: self.engine.world_size]:
                write_shard(shard, reader=reader, out=folder, dtype=dtype)
                going_on()
            fault_point("export", phase=phase, **self.team.where)
        self._leave_if_superseded()
        if self.engine.rank == 0:
            finish_export(self.prepared, shards, out=folder, dtype=dtype, checkpoint=end.name)
        self.team.event("export", f"{phase}: {relative(folder, self.run_dir.root)}")

    def need(self, end: Found | None, phase: str) -> Found:
        """The phase's end, for an export or evaluation that is missing."""
        if end is None:
            raise CheckpointError(
                f"{self.run_dir.checkpoints_dir}: the checkpoint at the end of phase {phase} is "
                "lost, and so is its export or evaluation; restore models and evaluations, or "
                "delete the checkpoints of later phases, and it is trained again"
            )
        return end

    def _header(
        self, plan: PhasePlan, step: int, *, kind: CheckpointKind, phase_end: bool
    ) -> ManifestHeader:
        rate = plan.learning_rate
        return ManifestHeader(
            kind=kind,
            phase=plan.spec.name,
            phase_index=plan.index,
            step=step,
            cursor=plan.stream.batches.cursor(step),
            phase_end=phase_end,
            schedule=Schedule(
                name=rate.shape,
                total_steps=rate.total_steps,
                warmup_steps=rate.warmup_steps,
                learning_rate=rate.peak,
            ),
            spec_digest=self.spec.digest(),
            base_digest=self.prepared.digest,
            attempt=self.team.attempt,
            world_size=self.engine.world_size,
            versions=self.versions,
        )

    def _after_publish(self, published: Callable[[], None]) -> None:
        """On rank 0, in the background."""
        published()
        kept = self.spec.checkpoints
        best = (
            None
            if kept.keep_best is None
            else best_steps(self._record_reader.read(), kept.keep_best)
        )
        self.store.prune(kept.keep_last, keep_every=kept.keep_every, keep=best or ())
        self.store.collect_orphans()

    def _saved(self, phase: str, step: int, kind: CheckpointKind, report: SaveReport) -> None:
        self.team.event(
            "checkpoint" if self.engine.rank == 0 else "rank_file",
            f"{phase} step {step}: {kind}, {report.num_bytes / 1e6:.0f} MB in "
            f"{report.total_seconds:.1f} s, of which training waited {report.stall_seconds:.1f} s",
            every_rank=True,
            kind=kind,
            phase=phase,
            step=step,
            **asdict(report),
        )

    def _load(self, reader: SliceReader, *, optimizer_step: int | None) -> None:
        """Collective: every rank calls this."""
        started = time.perf_counter()
        self.engine.load(reader, optimizer_step=optimizer_step)
        num_bytes = getattr(reader, "bytes_read", 0)
        seconds = time.perf_counter() - started
        self.team.event(
            "load",
            f"rank {self.engine.rank} read {num_bytes / 1e6:.0f} MB in {seconds:.1f} s",
            every_rank=True,
            num_bytes=num_bytes,
            seconds=seconds,
        )

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

    @contextmanager
    def _reader(self, directory: StoragePath) -> Iterator[WholeReader]:
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
        trained = CheckpointReader(directory, manifest, on_damage=damage.append)
        with WholeReader(trained, prepared=prepared, frozen=self.spec.model.frozen) as reader:
            yield reader
        self._refuse_damage(directory, damage, block=trained.damaged)

    def _refuse_damage(
        self, directory: StoragePath, damage: list[str], *, block: Block | None = None
    ) -> None:
        """Collective: every rank calls this. What any rank found ends the attempt for all.

        The checkpoint is set aside once rank 0 has found it too. Else it may be the disk or the
        memory of one host, and an OSError has the processes replaced.
        """
        told = self.engine.all_gather((damage[0], block) if damage else None)
        found: list[tuple[str, Block | None]] = [each for each in told if each is not None]
        if not found:
            return
        first = found[0][0]
        if not self.team.agreed(lambda: any(_is_damaged(directory, block) for _, block in found)):
            raise OSError(errno.EIO, f"{first}; but rank 0 reads it well")
        self._set_aside(directory, first)

    def _leave_if_superseded(self) -> None:
        """Collective: every rank calls this."""
        if not self.team.agreed(self.store.is_newest):
            message = f"attempt {self.team.attempt} leaves: a later one has started"
            self.team.event("superseded", message)
            raise SupersededError(message)

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
