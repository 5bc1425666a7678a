"""What an attempt keeps on storage and gets back: saves, loads and exports."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial

from rotescale.checkpoint.manifest import ManifestHeader, Schedule
from rotescale.checkpoint.saver import CheckpointSaver, SaveReport, SaveRequest
from rotescale.engine.base import SliceReader
from rotescale.faults import fault_point
from rotescale.model.export import (
    MAX_SHARD_BYTES,
    discard_export,
    finish_export,
    is_exported,
    plan_shards,
    write_shard,
)
from rotescale.model.trained import start_reader
from rotescale.phase_plan import PhasePlan
from rotescale.records import RecordReader, best_steps
from rotescale.run_dir import CheckpointKind
from rotescale.spec import ExperimentSpec
from rotescale.storage import StoragePath, relative
from rotescale.team import Team
from rotescale.team_checkpoints import Found, TeamCheckpoints
from rotescale.tensors import PARTS

_LAST_SAVE_SECONDS = 120.0


@dataclass(frozen=True)
class Persistence:
    """Joins the engine, which names its slices, and the store, which moves bytes; on one rank."""

    spec: ExperimentSpec
    team: Team
    checkpoints: TeamCheckpoints
    saver: CheckpointSaver
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
        self.checkpoints.leave_if_superseded()
        may_skip = self.spec.checkpoints.while_saving == "skip" and not (phase_end or urgent)
        if may_skip and self.team.engine.all_sum([float(self.saver.busy)])[0]:
            message = f"{plan.spec.name} step {step}: the save before is in flight"
            self.team.event("skipped", message)
            return False
        phase = plan.spec
        directory = self.checkpoints.store.directory(
            phase.name, phase_index=plan.index, step=step, kind=kind
        )
        self.saver.start(
            SaveRequest(
                directory=directory,
                header=self._header(plan, step, kind=kind, phase_end=phase_end),
                state=self.team.engine.state(PARTS if kind == "full" else PARTS[:1]),
                # A resumed run repeats no step before the checkpoint, so their rows must be there.
                before_publish=self.team.records.flush,
                after_publish=partial(self._after_publish, published),
                done=partial(self._saved, phase.name, step, kind),
            )
        )
        if phase_end:
            self.saver.finish()
            # The next stage reads the manifest: rank 0 has published it before all go on.
            self.team.engine.all_sum([0.0])
        return True

    def last_good(self) -> str:
        """On this rank alone: the newest checkpoint, for a message; waits for one in flight."""
        # The save in flight, if any, is still worth having: it may be the last good one.
        with suppress(Exception):
            self.saver.finish(timeout_seconds=_LAST_SAVE_SECONDS)
        return self.checkpoints.last_good()

    def load_base(self) -> None:
        """Collective: every rank calls this. The prepared model, with a new optimizer."""
        with start_reader(self.spec.model, self.checkpoints.prepared) as reader:
            self._load(reader, optimizer_step=None)

    def load_checkpoint(self, directory: StoragePath, *, optimizer_step: int | None) -> None:
        """Collective: every rank calls this. Raises DamagedCheckpointError on all ranks alike.

        With ``optimizer_step`` the moments are read too; None starts a new optimizer.
        """
        with self.checkpoints.reader(directory) as reader:
            self._load(reader, optimizer_step=optimizer_step)

    @cached_property
    def _record_reader(self) -> RecordReader:
        """Reads each segment of the records once, however often they are asked for."""
        return RecordReader(self.checkpoints.run_dir)

    def export(self, phase: str, end: Found | None, *, going_on: Callable[[], None]) -> None:
        """Collective: every rank calls this. A Hugging Face folder of the phase's ``end``, once.

        Where the end is lost, the export that was made of it stays. ``going_on`` is called after
        each file. Raises SupersededError and DamagedCheckpointError on all ranks alike.
        """
        folder = self.checkpoints.run_dir.model_folder(phase)
        if self.team.agreed(is_exported, folder, None if end is None else end.name):
            return
        end = self.checkpoints.need(end, phase)
        # Attempts have one place for exports between them.
        self.checkpoints.leave_if_superseded()
        dtype = self.spec.model.export_dtype
        # Of another checkpoint's export nothing may be taken for this one's.
        self.team.on_rank_0(lambda: discard_export(folder))
        with self.checkpoints.reader(end.directory) as reader:
            shards = plan_shards(reader.shapes, dtype=dtype, max_shard_bytes=MAX_SHARD_BYTES)
            for shard in shards[self.team.rank :: self.team.engine.world_size]:
                write_shard(shard, reader=reader, out=folder, dtype=dtype)
                going_on()
            fault_point("export", phase=phase, **self.team.where)
        self.checkpoints.leave_if_superseded()
        if self.team.rank == 0:
            finish_export(
                self.checkpoints.prepared, shards, out=folder, dtype=dtype, checkpoint=end.name
            )
        self.team.event("export", f"{phase}: {relative(folder, self.checkpoints.run_dir.root)}")

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
            base_digest=self.checkpoints.prepared.digest,
            attempt=self.team.attempt,
            world_size=self.team.engine.world_size,
            versions=self.versions,
            lora_alpha=self.spec.model.lora_alpha,
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
        self.checkpoints.store.prune(kept.keep_last, keep_every=kept.keep_every, keep=best or ())
        self.checkpoints.store.collect_orphans()

    def _saved(self, phase: str, step: int, kind: CheckpointKind, report: SaveReport) -> None:
        self.team.event(
            "checkpoint" if self.team.rank == 0 else "rank_file",
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
        self.team.engine.load(reader, optimizer_step=optimizer_step)
        num_bytes = getattr(reader, "bytes_read", 0)
        seconds = time.perf_counter() - started
        self.team.event(
            "load",
            f"rank {self.team.rank} read {num_bytes / 1e6:.0f} MB in {seconds:.1f} s",
            every_rank=True,
            num_bytes=num_bytes,
            seconds=seconds,
        )
