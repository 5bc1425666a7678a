"""PhasePlan: a phase of the spec with everything that follows from it and its data."""

from __future__ import annotations

from collections.abc import Mapping
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
    total_steps: int
    """Optimizer steps of the phase."""
    learning_rate: LearningRate
    frozen_rows: Mapping[str, tuple[int, ...]]
    """Parameter -> rows that the phase leaves as they are."""

    @classmethod
    def of(
        cls,
        index: int,
        spec: PhaseSpec,
        stream: Stream,
        *,
        key_rows: Mapping[str, tuple[int, ...]],
    ) -> PhasePlan:
        """Steps come from the stream's batches; the schedule may be longer than the phase.

        ``key_rows``: parameter -> rows of the key tokens, which the spec may want to freeze.
        """
        total_steps = schedule_steps = stream.num_steps(spec)
        if spec.schedule_epochs is not None:
            schedule_steps = spec.schedule_epochs * stream.batches.steps_per_epoch
        rate = LearningRate(spec.schedule, spec.learning_rate, spec.warmup_steps, schedule_steps)
        frozen_rows = key_rows if spec.freeze_key_tokens else {}
        return cls(index, spec, stream, total_steps, rate, frozen_rows)

    @property
    def num_examples(self) -> int:
        """How many examples all steps of the phase train on."""
        return self.stream.batches.cursor(self.total_steps)

    @property
    def evaluations(self) -> dict[int, int]:
        """The steps before which the model is measured on the way, and the epochs they end."""
        per_epoch = self.stream.batches.steps_per_epoch
        return {epoch * per_epoch: epoch for epoch in self.spec.evaluate_epochs}

    def settings(self) -> OptimizerSettings:
        """AdamW, clipping and frozen rows, as the spec wants them."""
        spec = self.spec
        return OptimizerSettings(
            spec.weight_decay,
            spec.adam_betas,
            spec.adam_epsilon,
            spec.max_grad_norm,
            self.frozen_rows,
        )
