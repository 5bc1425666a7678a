"""Asks a model the harness's tasks, stage by stage: rank 0 leads, the others follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rotescale.errors import DataError
from rotescale.evaluation.harness.requests import Asker, Leader, follow
from rotescale.evaluation.harness.results import Measured, measured
from rotescale.evaluation.harness.tasks import (
    errors_of_tasks,
    load_tasks,
    seed_examples,
    seeded,
)
from rotescale.spec import EvaluationSpec


@dataclass(frozen=True)
class Benchmarks:
    """The tasks that a spec names; on other ranks than 0 without any, as these only follow."""

    tasks: dict[str, Any] | None
    limit: int | None
    """Documents of each task; None: all."""
    progress: Callable[[str, int, int], None]
    """Told the stage, and how many of how many requests are answered, over all ranks."""

    @classmethod
    def load(
        cls,
        spec: EvaluationSpec,
        *,
        rank: int,
        allow_code: bool,
        progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> Benchmarks:
        """Load the tasks, on rank 0. Raises as ``load_tasks``."""
        tasks = load_tasks(spec, allow_code=allow_code) if rank == 0 else None
        return cls(tasks, spec.harness_limit, progress)

    def measure(self, asker: Asker, *, stage: str) -> Measured | None:
        """Collective: every rank calls this. What the tasks came to, on rank 0; else None.

        Raises DataError, on rank 0, where a task's own code fails; the others then wait.
        """
        was_training = asker.model.training
        asker.model.eval()
        try:
            if self.tasks is None:
                follow(asker, progress=partial(self.progress, stage))
                return None
            return self._lead(self.tasks, Leader(asker), stage=stage)
        finally:
            asker.model.train(was_training)

    def _lead(self, tasks: dict[str, Any], leader: Leader, *, stage: str) -> Measured:
        from lm_eval.evaluator import evaluate

        # Subclasses one of the harness's, which need not be installed.
        from rotescale.evaluation.harness.model import HarnessModel

        seed_examples(tasks)
        model = HarnessModel(leader, progress=partial(self.progress, stage))
        try:
            with seeded():
                results = evaluate(model, tasks, limit=self.limit, bootstrap_iters=0)
        except errors_of_tasks() as error:
            if model.is_asking:
                # The engine's or a peer's, which is no fault of the task.
                raise
            raise DataError(
                f"evaluation.harness_tasks: one of {', '.join(tasks['tasks'])} fails "
                f"({type(error).__name__}: {error}); the worker's log says where: mend it in "
                "harness_folder, or leave it out under another name of the run"
            ) from error
        leader.end()
        return measured(results, tasks["tasks"])
