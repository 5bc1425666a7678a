"""PhasePlan: a phase of the spec with everything that follows from it and its data."""

from __future__ import annotations

from dataclasses import dataclass

from rotescale.data.stream import Stream
from rotescale.engine.base import OptimizerSettings
from rotescale.schedule import LearningRate
from rotescale.spec import PhaseSpec


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
