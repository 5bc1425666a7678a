"""The one training loop, and the sequence of phases around it: resume, train, save, measure."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from rotescale.checkpoint.manifest import (
    MANIFEST,
    ManifestHeader,
    Schedule,
    check_base,
    load_manifest,
)
from rotescale.checkpoint.saver import CheckpointSaver, SaveReport, SaveRequest
from rotescale.checkpoint.slices import CheckpointReader
from rotescale.checkpoint.store import CheckpointStore
from rotescale.data.packing import PackedRow
from rotescale.data.stream import StepData, Stream
from rotescale.engine.base import Engine, OptimizerSettings, Row, SliceReader
from rotescale.errors import CheckpointError, TrainingError
from rotescale.faults import fault_point
from rotescale.model.export import (
    MAX_SHARD_BYTES,
    finish_export,
    is_exported,
    plan_shards,
    write_shard,
)
from rotescale.model.prepare import PreparedModel
from rotescale.records import EventRow, RecordWriter, StepRow
from rotescale.run_dir import CheckpointKind, RunDir
from rotescale.schedule import LearningRate
from rotescale.spec import ExperimentSpec, PhaseSpec
from rotescale.tensors import PARTS
from rotescale.watchdog import Watchdog

_LAST_SAVE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """A phase with everything that follows from its spec and data."""

    index: int
    spec: PhaseSpec
    stream: Stream
    learning_rate: LearningRate

    @classmethod
    def of(cls, index: int, spec: PhaseSpec, stream: Stream) -> PhasePlan:
        """Steps come from the stream's batches; the schedule may be longer than the phase."""
        schedule_epochs = spec.schedule_epochs or spec.epochs
        schedule_steps = schedule_epochs * stream.batches.steps_per_epoch
        rate = LearningRate(spec.schedule, spec.learning_rate, spec.warmup_steps, schedule_steps)
        return cls(index, spec, stream, rate)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the phase."""
        return self.spec.epochs * self.stream.batches.steps_per_epoch

    @property
    def evaluations(self) -> dict[int, int]:
        """The steps before which the model is measured on the way, and the epochs they end."""
        per_epoch = self.stream.batches.steps_per_epoch
        return {epoch * per_epoch: epoch for epoch in self.spec.evaluate_epochs}

    def settings(self) -> OptimizerSettings:
        """AdamW and clipping, as the spec wants them."""
        spec = self.spec
        return OptimizerSettings(
            spec.weight_decay, spec.adam_betas, spec.adam_epsilon, spec.max_grad_norm
        )


class DamagedCheckpointError(Exception):
    """All ranks: a checkpoint was damaged and has been set aside; start a new attempt.

    Not the user's error: the new attempt goes on from the checkpoint before it.
    """


class StageEvaluator(Protocol):
    """Measures the engine's model and records the result; skipped where the stage was measured."""

    def is_done(self, stage: str, epoch: int | None) -> bool:
        """Whether the stage's results are on storage already."""
        ...

    def evaluate(self, stage: str, epoch: int | None) -> None:
        """Collective: every rank calls this."""
        ...


@dataclass(frozen=True)
class Training:
    """One attempt at a run, on one rank: the parts it is made of, and the sequence of phases."""

    spec: ExperimentSpec
    run_dir: RunDir
    attempt: int
    engine: Engine
    store: CheckpointStore
    saver: CheckpointSaver
    prepared: PreparedModel
    plans: tuple[PhasePlan, ...]
    evaluator: StageEvaluator
    records: RecordWriter
    watchdog: Watchdog
    versions: dict[str, str]

    def run(self) -> None:
        """Collective: every rank calls this. Do what is left of the run, whatever that is."""
        if self.spec.evaluation.base and not self._agreed(self.evaluator.is_done, "base", None):
            with self.prepared.reader() as reader:
                self._load(reader, optimizer_step=None)
            self._evaluate("base", None)
        for plan in self.plans:
            if not self._ended(plan.spec.name):
                self.train_phase(plan)
            self._finish_phase(plan)

    def train_phase(self, plan: PhasePlan) -> None:
        """Collective: every rank calls this. The training loop, the same for every phase."""
        engine, phase = self.engine, plan.spec
        step = self._begin_phase(plan)
        first = step
        while step < plan.total_steps:
            if epoch := plan.evaluations.get(step):
                self._evaluate(phase.name, epoch)
            self.watchdog.arm("first_step" if step == first else "step")
            started = time.perf_counter()
            data = plan.stream.step(step, rank=engine.rank, world_size=engine.world_size)
            fault_point("step", phase=phase.name, step=step, **self._where)
            loss_sum = self._backward(data)
            # Agreed before the update, so that all ranks stop alike and the weights stay sound.
            loss = engine.all_sum([loss_sum])[0] / data.target_tokens
            self._check_finite(loss, "loss", plan=plan, step=step, data=data)
            learning_rate = plan.learning_rate.at(step)
            self.saver.before_update()
            grad_norm = engine.step(learning_rate=learning_rate)
            self._check_finite(grad_norm, "gradient norm", plan=plan, step=step, data=data)
            step += 1
            if engine.rank == 0:
                self.records.append(
                    StepRow(
                        attempt=self.attempt,
                        phase=phase.name,
                        phase_index=plan.index,
                        step=step,
                        epoch=(step - 1) // plan.stream.batches.steps_per_epoch + 1,
                        cursor=plan.stream.batches.cursor(step),
                        loss=loss,
                        grad_norm=grad_norm,
                        learning_rate=learning_rate,
                        num_examples=len(data.example_ids),
                        num_tokens=data.num_tokens,
                        target_tokens=data.target_tokens,
                        seconds=time.perf_counter() - started,
                        example_ids=data.example_ids,
                    )
                )
            if step < plan.total_steps and step % self._save_interval(plan) == 0:
                self._save(plan, step, kind="full", phase_end=False)
        self._save(plan, step, kind="weights", phase_end=True)

    def _begin_phase(self, plan: PhasePlan) -> int:
        """Collective: every rank calls this. Load the newest state; returns the steps done.

        That is a checkpoint of this phase, or the master weights that the previous phase (or
        the base model) left, with a new optimizer.
        """
        fault_point("phase", phase=plan.spec.name, **self._where)
        self.engine.configure(plan.settings())
        newest = self._on_rank_0(lambda: _directory(self.store.newest()))
        if newest is not None:
            manifest = load_manifest(newest / MANIFEST)
            if manifest.phase_index == plan.index and not manifest.phase_end:
                self._load_checkpoint(newest, optimizer_step=manifest.step)
                self.event("resumed", f"{plan.spec.name}: going on after step {manifest.step}")
                return manifest.step
        if plan.index == 0:
            with self.prepared.reader() as base:
                self._load(base, optimizer_step=None)
        else:
            before = self._phase_end(self.plans[plan.index - 1].spec.name)
            self._load_checkpoint(before, optimizer_step=None)
        self.event("phase", f"{plan.spec.name} starts", total_steps=plan.total_steps)
        return 0

    def _backward(self, data: StepData) -> float:
        """Collective: every rank calls this. Gradients of the global mean; returns the local sum.

        The engine averages over ranks, so the factor world_size / target_tokens makes it the
        mean over the tokens of the whole batch, however they lie on the ranks.
        """
        scale = self.engine.world_size / data.target_tokens
        last = len(data.rows) - 1
        return sum(
            self.engine.backward(_to_row(packed, self.engine.device), scale=scale, last=i == last)
            for i, packed in enumerate(data.rows)
        )

    def _check_finite(
        self, value: float, what: str, *, plan: PhasePlan, step: int, data: StepData
    ) -> None:
        if math.isfinite(value):
            return
        # The save in flight, if any, is still worth having: it may be the last good one.
        with suppress(Exception):
            self.saver.finish(timeout_seconds=_LAST_SAVE_SECONDS)
        keys = plan.stream.shards.keys(data.example_ids)
        newest = _directory(self.store.newest())
        good = "none" if newest is None else newest.relative_to(self.run_dir.root)
        raise TrainingError(
            f"phase {plan.spec.name}, step {step + 1}: the {what} is {value}; examples "
            f"(fact, prompt) {keys}; last good checkpoint: {good}. Lower "
            f"phases.{plan.index}.learning_rate ({plan.spec.learning_rate:g}) or set "
            f"max_grad_norm, under a new run name"
        )

    def _save_interval(self, plan: PhasePlan) -> int:
        return self.spec.checkpoints.every_steps or plan.stream.batches.steps_per_epoch

    def _save(self, plan: PhasePlan, step: int, *, kind: CheckpointKind, phase_end: bool) -> None:
        """Collective: every rank calls this. Begin a save; the end of a phase waits for its end."""
        self.watchdog.arm("save")
        skips = self.spec.checkpoints.while_saving == "skip" and not phase_end
        if skips and self.engine.all_sum([float(self.saver.busy)])[0]:
            self.event("skipped", f"{plan.spec.name} step {step}: the save before is in flight")
            return
        phase = plan.spec
        directory = self.store.directory(phase.name, phase_index=plan.index, step=step, kind=kind)
        self.saver.start(
            SaveRequest(
                directory=directory,
                header=self._header(plan, step, kind=kind, phase_end=phase_end),
                state=self.engine.state(PARTS if kind == "full" else PARTS[:1]),
                # A resumed run repeats no step before the checkpoint, so their rows must be there.
                before_publish=self.records.flush,
                after_publish=self._remove_what_is_not_needed,
                done=partial(self._saved, phase.name, step, kind),
            )
        )
        if phase_end:
            self.saver.finish()
            # The next stage reads the manifest: rank 0 has published it before all go on.
            self.engine.all_sum([0.0])

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
            attempt=self.attempt,
            world_size=self.engine.world_size,
            versions=self.versions,
        )

    def _remove_what_is_not_needed(self) -> None:
        """On rank 0, in the background."""
        kept = self.spec.checkpoints
        self.store.prune(kept.keep_last, keep_every=kept.keep_every)
        self.store.collect_orphans()

    def _saved(self, phase: str, step: int, kind: CheckpointKind, report: SaveReport) -> None:
        self.event(
            "checkpoint" if self.engine.rank == 0 else "rank_file",
            f"{phase} step {step}: {kind}, {report.num_bytes / 1e6:.0f} MB in "
            f"{report.total_seconds:.1f} s, of which training waited {report.stall_seconds:.1f} s",
            every_rank=True,
            kind=kind,
            phase=phase,
            step=step,
            **asdict(report),
        )

    def _finish_phase(self, plan: PhasePlan) -> None:
        """Collective: every rank calls this. Export and measure the phase's end, where missing."""
        name = plan.spec.name
        folder = self.run_dir.model_folder(name)
        if not self._agreed(is_exported, folder):
            self._export(name, folder)
        if not self._agreed(self.evaluator.is_done, name, None):
            self._load_checkpoint(self._phase_end(name), optimizer_step=None)
            self._evaluate(name, None)

    def _export(self, phase: str, folder: Path) -> None:
        """Collective: every rank calls this. A Hugging Face folder from the published slices."""
        self.watchdog.arm("save")
        dtype = self.spec.model.export_dtype
        directory, damage = self._phase_end(phase), list[str]()
        with self._reader(directory, damage) as reader:
            shards = plan_shards(reader.shapes, dtype=dtype, max_shard_bytes=MAX_SHARD_BYTES)
            for shard in shards[self.engine.rank :: self.engine.world_size]:
                write_shard(shard, reader=reader, out=folder, dtype=dtype)
        fault_point("export", phase=phase, **self._where)
        self._refuse_damage(directory, damage)
        if self.engine.rank == 0:
            finish_export(self.prepared, shards, out=folder, dtype=dtype)
        self.event("export", f"{phase}: {folder.relative_to(self.run_dir.root)}")

    def _evaluate(self, stage: str, epoch: int | None) -> None:
        """Collective: every rank calls this. Measure, unless an earlier attempt did."""
        if self._agreed(self.evaluator.is_done, stage, epoch):
            return
        # A whole copy of the model may need the memory that the next save needs again.
        self.saver.release()
        self.watchdog.arm("evaluation")
        fault_point("evaluation", phase=stage, epoch=epoch, **self._where)
        self.evaluator.evaluate(stage, epoch)

    def _load(self, reader: SliceReader, *, optimizer_step: int | None) -> None:
        """Collective: every rank calls this."""
        self.watchdog.arm("load")
        started = time.perf_counter()
        self.engine.load(reader, optimizer_step=optimizer_step)
        num_bytes = getattr(reader, "bytes_read", 0)
        seconds = time.perf_counter() - started
        self.event(
            "load",
            f"rank {self.engine.rank} read {num_bytes / 1e6:.0f} MB in {seconds:.1f} s",
            every_rank=True,
            num_bytes=num_bytes,
            seconds=seconds,
        )

    def _load_checkpoint(self, directory: Path, *, optimizer_step: int | None) -> None:
        """Collective: every rank calls this. Raises DamagedCheckpointError on all ranks alike."""
        damage: list[str] = []
        with self._reader(directory, damage) as reader:
            self._load(reader, optimizer_step=optimizer_step)
        self._refuse_damage(directory, damage)

    def _reader(self, directory: Path, damage: list[str]) -> CheckpointReader:
        """A reader that reads to its end whatever it meets, and notes damage."""
        manifest = load_manifest(directory / MANIFEST)
        prepared = self.prepared
        check_base(directory, manifest, digest=prepared.digest, prepared=prepared.folder)
        return CheckpointReader(directory, manifest, on_damage=damage.append)

    def _refuse_damage(self, directory: Path, damage: list[str]) -> None:
        """Collective: every rank calls this. What any rank found ends the attempt for all."""
        found = [first for rank in self.engine.all_gather(damage[:1]) for first in rank]
        if not found:
            return
        if not self._agreed(self.store.set_aside, directory):
            raise CheckpointError(
                f"{found[0]}; attempt {self.attempt} was superseded and may be missing what its "
                "successor has removed: end this process"
            )
        self.event("damaged", f"{found[0]}; set aside: an earlier checkpoint is used")
        raise DamagedCheckpointError(found[0])

    def _ended(self, phase: str) -> bool:
        """Collective: every rank calls this."""
        return self._agreed(lambda: self.store.phase_end(phase) is not None)

    def _phase_end(self, phase: str) -> Path:
        """Collective: every rank calls this. The checkpoint that ends the phase, which ended."""
        found: Path | None = self._on_rank_0(lambda: _directory(self.store.phase_end(phase)))
        assert found is not None, f"phase {phase} has not ended"
        return found

    def _agreed(self, question: Callable[..., bool], *arguments: Any) -> bool:
        """Collective: every rank calls this. What rank 0 sees on storage, for all alike."""
        return bool(self._on_rank_0(lambda: question(*arguments)))

    def _on_rank_0(self, ask: Callable[[], Any]) -> Any:
        """Collective: every rank calls this. Storage may look different from every host."""
        answer = ask() if self.engine.rank == 0 else None
        return self.engine.all_gather(answer)[0]

    def event(self, name: str, message: str, *, every_rank: bool = False, **details: Any) -> None:
        """Record what happened: to the run, by rank 0, or with ``every_rank`` to each rank."""
        if self.engine.rank and not every_rank:
            return
        now = datetime.now(UTC).isoformat()
        self.records.append(
            EventRow(attempt=self.attempt, time=now, name=name, message=message, details=details)
        )

    @property
    def _where(self) -> dict[str, int]:
        return {"rank": self.engine.rank, "attempt": self.attempt}


def _directory(checkpoint: Any) -> Path | None:
    return None if checkpoint is None else checkpoint.directory


def _to_row(packed: PackedRow, device: torch.device) -> Row:
    return Row(
        tokens=torch.from_numpy(packed.tokens)[None].to(device),
        position_ids=torch.from_numpy(packed.position_ids)[None].to(device),
        target_positions=torch.from_numpy(packed.target_positions).to(device),
        targets=torch.from_numpy(packed.targets).to(device),
    )
