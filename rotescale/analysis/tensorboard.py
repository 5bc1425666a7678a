"""TensorBoard event files out of a run's records."""

from __future__ import annotations

import shutil
from pathlib import Path

from rotescale.records import EvaluationRow, Records, StepRow
from rotescale.spec import BASE_LANGUAGE
from rotescale.storage import writing


class TensorBoardWriter:
    """Writes each step and evaluation once. The files are made anew: records are what counts."""

    def __init__(self, directory: Path) -> None:
        """Raises StorageError where ``directory`` cannot be written."""
        # torch takes seconds to import, and only a run that goes on needs a writer.
        from torch.utils.tensorboard import SummaryWriter

        with writing(directory):
            shutil.rmtree(directory, ignore_errors=True)
            self._writer = SummaryWriter(str(directory))
        self._steps: set[tuple[int, int]] = set()
        self._evaluations: set[tuple[str | int | None, ...]] = set()

    def update(self, records: Records) -> None:
        """Add what ``records`` holds beyond the last call."""
        for step in records.steps:
            if (step.phase_index, step.step) not in self._steps:
                self._steps.add((step.phase_index, step.step))
                self._add_step(step)
        for row in records.evaluations:
            if row.key not in self._evaluations:
                self._evaluations.add(row.key)
                self._add_evaluation(row)

    def _add_step(self, step: StepRow) -> None:
        values = {
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            "tokens_per_second": step.num_tokens / step.seconds if step.seconds else None,
            **{f"seconds/{name}": seconds for name, seconds in step.parts.items()},
        }
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"{step.phase}/{name}", value, step.step)

    def _add_evaluation(self, row: EvaluationRow) -> None:
        tag = f"{row.metric}/{row.relation}/{row.split}/{row.prompts}/{row.stage}"
        if row.language != BASE_LANGUAGE:
            tag += f"/{row.language}"
        if row.layer is not None:
            tag += f"/layer-{row.layer:03d}"
        if row.suite != "core":
            tag = f"{row.suite}/{tag}"
        self._writer.add_scalar(tag, row.value, row.epoch or 0)

    def close(self) -> None:
        """Flush the files."""
        self._writer.close()
