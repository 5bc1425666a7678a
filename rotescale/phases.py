"""The one training loop, and the sequence of phases around it: resume, train, save, measure."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from rotescale.ahead import made_ahead
from rotescale.data.packing import PackedRow, fold
from rotescale.data.stream import StepData
from rotescale.engine.base import Row
from rotescale.errors import TrainingError
from rotescale.faults import fault_point
from rotescale.freed_memory import give_back
from rotescale.memory_gauge import EVENT as MEMORY_EVENT
from rotescale.memory_gauge import MemoryGauge, Moment, make_peak
from rotescale.notices import Notices
from rotescale.pace import EVENT as RANKS_EVENT
from rotescale.pace import EVERY_STEPS, Pace, compare, describe
from rotescale.persistence import Persistence
from rotescale.phase_plan import PhasePlan
from rotescale.preflight.measure import glance_seconds
from rotescale.profiling import StepProfiler
from rotescale.records import StepRow
from rotescale.spec import ExperimentSpec
from rotescale.team import Team
from rotescale.team_checkpoints import Found, TeamCheckpoints
from rotescale.utilisation import Device
from rotescale.watchdog import Watchdog


class StageEvaluator(Protocol):
    """Measures the engine's model and records the result; skipped where the stage was measured."""

    def is_done(self, stage: str, epoch: int | None, checkpoint: str | None) -> bool:
        """Whether the results are on storage already: of that checkpoint, or None: of any."""
        ...

    def evaluate(self, stage: str, epoch: int | None, checkpoint: str | None) -> None:
        """Collective: every rank calls this. ``checkpoint`` is what the engine has loaded."""
        ...


@dataclass(frozen=True)
class Training:
    """One attempt at a run, on one rank: the parts it is made of, and the sequence of phases."""

    spec: ExperimentSpec
    team: Team
    checkpoints: TeamCheckpoints
    persistence: Persistence
    plans: tuple[PhasePlan, ...]
    evaluators: tuple[StageEvaluator, ...]
    """In the order in which they measure a stage."""
    watchdog: Watchdog
    notices: Notices
    pace: Pace
    memory: MemoryGauge
    profiler: StepProfiler
    device: Device | None
    """What is computed on; None where the model's arithmetic is not known."""

    def run(self) -> None:
        """Collective: every rank calls this. Do what is left of the run, whatever that is."""
        if self.spec.evaluation.base and not self._is_measured("base", None):
            self.watchdog.arm("load")
            self.persistence.load_base()
            self._evaluate("base", None)
        for plan in self.plans:
            if not self.checkpoints.has_ended(plan.index):
                self.train_phase(plan)
            self._finish_phase(plan)

    def train_phase(self, plan: PhasePlan) -> None:
        """Collective: every rank calls this. The training loop, the same for every phase."""
        self._begin_moment()
        begun = self._begin_phase(plan)
        engine, stop = self.team.engine, plan.total_steps
        read = partial(plan.stream.step, rank=engine.rank, world_size=engine.world_size)
        with made_ahead(map(read, range(begun, stop))) as batches:
            try:
                self._train_steps(plan, begun, batches)
            finally:
                self.profiler.close()
        self._note_memory(plan.spec.name, "training")
        self.watchdog.arm("save")
        self.persistence.save(plan, stop, kind="weights", phase_end=True)
        self.notices.rest(True)

    def _train_steps(self, plan: PhasePlan, begun: int, batches: Iterator[StepData]) -> None:
        """Collective: every rank calls this. From step ``begun`` to the end of the phase."""
        step = saved = begun
        while step < plan.total_steps:
            if epoch := plan.evaluations.get(step):
                saved = self._evaluate_on_the_way(plan, step, epoch, saved=saved)
            self.watchdog.arm("first_step" if step == begun else "step")
            self.profiler.before_step(plan.spec.name, step + 1, is_first=step == begun)
            noticed = self._train_step(plan, step, batches)
            step += 1
            self.profiler.after_step(step)
            if step % EVERY_STEPS == 0 or step == plan.total_steps:
                self._compare_ranks(plan, step)
            due = noticed or step % self._save_interval(plan) == 0
            # A measurement that comes next would ask for what is skipped here.
            urgent = noticed or step in plan.evaluations
            if due and step < plan.total_steps and self._save(plan, step, urgent=urgent):
                saved = step

    def _begin_phase(self, plan: PhasePlan) -> int:
        """Collective: every rank calls this. Load the newest state; returns the steps done.

        That is a checkpoint of this phase, or the master weights that the previous phase (or
        the base model) left, with a new optimizer.
        """
        fault_point("phase", phase=plan.spec.name, **self.team.where)
        self.watchdog.arm("load")
        self.pace.pause()
        self.team.engine.configure(plan.settings())
        newest = self.checkpoints.newest()
        if newest is not None and newest.phase_index == plan.index:
            self.persistence.load_checkpoint(newest.directory, optimizer_step=newest.step)
            self.team.event("resumed", f"{plan.spec.name}: going on after step {newest.step}")
            return newest.step
        if newest is None:
            self.persistence.load_base()
        else:
            self.persistence.load_checkpoint(newest.directory, optimizer_step=None)
        self.team.event(
            "phase",
            f"{plan.spec.name} starts",
            phase=plan.spec.name,
            total_steps=plan.total_steps,
            later_examples=sum(later.num_examples for later in self.plans[plan.index + 1 :]),
        )
        return 0

    def _train_step(self, plan: PhasePlan, step: int, batches: Iterator[StepData]) -> bool:
        """Collective: every rank calls this. One update, from step 0, and its record.

        The next of ``batches`` is this step's.
        Returns, on all ranks alike, whether any rank has noticed a reason to save now.
        """
        self.notices.rest(False)
        engine, started = self.team.engine, time.perf_counter()
        clock = engine.clock
        clock.start()
        with self.watchdog.alone(), clock.part("data"):
            data = next(batches)
            fault_point("step", phase=plan.spec.name, step=step, **self.team.where)
        self.pace.enter()
        loss_sum = self._backward(data)
        # Agreed before the update, so that all ranks stop alike and the weights stay sound.
        with clock.part("communication"):
            total, noticed = engine.all_sum([loss_sum, float(self.notices.due)])
        self.pace.leave()
        loss = total / data.target_tokens
        self._check_finite(loss, "loss", plan=plan, step=step, data=data)
        learning_rate = plan.learning_rate.at(step)
        with clock.part("checkpoint"):
            self.persistence.saver.before_update()
        grad_norm = engine.step(learning_rate=learning_rate)
        self._check_finite(grad_norm, "gradient norm", plan=plan, step=step, data=data)
        parts = clock.take()
        if engine.rank == 0:
            self.team.records.append(
                StepRow(
                    attempt=self.team.attempt,
                    phase=plan.spec.name,
                    phase_index=plan.index,
                    step=step + 1,
                    epoch=step // plan.stream.batches.steps_per_epoch + 1,
                    cursor=plan.stream.batches.cursor(step + 1),
                    loss=loss,
                    grad_norm=grad_norm,
                    learning_rate=learning_rate,
                    num_examples=len(data.example_ids),
                    num_tokens=data.num_tokens,
                    target_tokens=data.target_tokens,
                    seconds=time.perf_counter() - started,
                    parts={name: round(seconds, 6) for name, seconds in parts.items()},
                    example_ids=data.example_ids,
                )
            )
        return noticed > 0

    def _compare_ranks(self, plan: PhasePlan, step: int) -> None:
        """Collective: every rank calls this. Record who keeps the others waiting."""
        engine = self.team.engine
        if engine.world_size == 1:
            return
        on_gpu = engine.device.type == "cuda"
        mine = (self.pace.take(), glance_seconds(engine.device) if on_gpu else None)
        windows, products = zip(*engine.all_gather(mine), strict=True)
        rows = compare(windows, [node.name for node in self.team.nodes], products)
        if rows:
            ranks = [row.model_dump() for row in rows]
            self.team.event(
                RANKS_EVENT, describe(rows), phase=plan.spec.name, step=step, ranks=ranks
            )
        self.pace.pause()

    def _save(self, plan: PhasePlan, step: int, *, urgent: bool) -> bool:
        """Collective: every rank calls this. Begin a full checkpoint; False where it is skipped."""
        self.watchdog.arm("save")
        self.pace.pause()
        published = self.notices.take() if urgent else lambda: None
        return self.persistence.save(
            plan, step, kind="full", phase_end=False, urgent=urgent, published=published
        )

    def _backward(self, data: StepData) -> float:
        """Collective: every rank calls this. Gradients of the global mean; returns the local sum.

        The engine averages over ranks, so the factor world_size / target_tokens makes it the
        mean over the tokens of the whole batch, however they lie on the ranks.
        """
        engine, last = self.team.engine, len(data.rows) - 1
        scale = engine.world_size / data.target_tokens
        losses = [
            engine.backward(
                to_row(packed, engine.device, attention=self.spec.model.attention),
                scale=scale,
                last=i == last,
            )
            for i, packed in enumerate(data.rows)
        ]
        of_rows: list[float] = torch.stack(losses).tolist()
        return sum(of_rows)

    def _check_finite(
        self, value: float, what: str, *, plan: PhasePlan, step: int, data: StepData
    ) -> None:
        if math.isfinite(value):
            return
        keys = plan.stream.shards.keys(data.example_ids)
        raise TrainingError(
            f"phase {plan.spec.name}, step {step + 1}: the {what} is {value}; examples "
            f"(fact, prompt) {keys}; last good checkpoint: {self.persistence.last_good()}. Lower "
            f"phases.{plan.index}.learning_rate ({plan.spec.learning_rate:g}) or set "
            f"max_grad_norm, under a new run name",
            is_agreed=True,
        )

    def _save_interval(self, plan: PhasePlan) -> int:
        return self.spec.checkpoints.every_steps or plan.stream.batches.steps_per_epoch

    def _finish_phase(self, plan: PhasePlan) -> None:
        """Collective: every rank calls this. Export and measure the phase's end, where missing."""
        name = plan.spec.name
        self.watchdog.arm("save")
        end = self.checkpoints.phase_end(name)
        if self.spec.is_exported(name):
            self.persistence.export(name, end, going_on=lambda: self.watchdog.arm("save"))
        if self.spec.is_evaluated(name) and not self._is_measured(name, None, end):
            self.watchdog.arm("load")
            end = self.checkpoints.need(end, name)
            self.persistence.load_checkpoint(end.directory, optimizer_step=None)
            self._evaluate(name, None, end)

    def _evaluate_on_the_way(self, plan: PhasePlan, step: int, epoch: int, *, saved: int) -> int:
        """Collective: every rank calls this. Measure before ``step``; returns the step saved last.

        An evaluation may take long, so what was trained before it is on storage first.
        """
        if self._is_measured(plan.spec.name, epoch):
            return saved
        self.profiler.close()
        if saved < step:
            self._save(plan, step, urgent=True)
        self._note_memory(plan.spec.name, "training")
        self._evaluate(plan.spec.name, epoch)
        self._begin_moment()
        return step

    def _evaluate(self, stage: str, epoch: int | None, end: Found | None = None) -> None:
        """Collective: every rank calls this. Measure what the engine holds, as far as it is not."""
        self.watchdog.arm("save")
        self.pace.pause()
        # A whole copy of the model may need the memory that the next save needs again.
        self.persistence.saver.release()
        self.notices.rest(True)
        self.watchdog.arm("evaluation")
        fault_point("evaluation", phase=stage, epoch=epoch, **self.team.where)
        name = None if end is None else end.name
        self._begin_moment()
        for evaluator in self.evaluators:
            if not self.team.agreed(evaluator.is_done, stage, epoch, name):
                self.watchdog.arm("evaluation")
                evaluator.evaluate(stage, epoch, name)
        self._note_memory(stage, "measuring")

    def _begin_moment(self) -> None:
        """What training has freed is not kept while it is measured, and the other way round."""
        give_back()
        self.memory.restart(self.team.engine.device)

    def _note_memory(self, stage: str, moment: Moment) -> None:
        """Collective: every rank calls this. Record the most that each rank has held."""
        engine = self.team.engine
        peak = make_peak(stage, moment, engine.all_gather(self.memory.take(engine.device)))
        if peak is not None:
            self.team.event(MEMORY_EVENT, peak.describe(), **peak.model_dump())

    def _is_measured(self, stage: str, epoch: int | None, end: Found | None = None) -> bool:
        """Collective: every rank calls this. Whether that is done, of the checkpoint ``end``."""
        name = None if end is None else end.name
        return all(
            self.team.agreed(evaluator.is_done, stage, epoch, name) for evaluator in self.evaluators
        )


def to_row(packed: PackedRow, device: torch.device, *, attention: str = "sdpa") -> Row:
    """The row as the engine takes it, on its device: folded, but for flash attention.

    That skips what is masked, and is told of packed examples by rows of one line alone, and where
    they begin.
    """
    told: dict[str, Any] = {}
    lines = packed
    if attention == "flash_attention_2":
        starts = np.flatnonzero(packed.position_ids == 0)
        borders = np.append(starts, len(packed.position_ids)).astype(np.int32)
        told["borders"] = torch.from_numpy(borders).to(device)
        told["longest"] = int(np.diff(borders).max())
    else:
        lines = fold(packed)
    return Row(
        **told,
        tokens=torch.from_numpy(np.atleast_2d(lines.tokens)).to(device),
        position_ids=torch.from_numpy(np.atleast_2d(lines.position_ids)).to(device),
        target_positions=torch.from_numpy(lines.target_positions).to(device),
        targets=torch.from_numpy(lines.targets).to(device),
    )
