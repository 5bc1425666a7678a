"""Measures one stage of a run on all ranks, and puts outcomes and rows on storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rotescale.engine.base import Engine
from rotescale.errors import DataError
from rotescale.evaluation.budget import pass_budget
from rotescale.evaluation.conflict import CONFLICT, beliefs, with_believed
from rotescale.evaluation.harness.benchmarks import Benchmarks
from rotescale.evaluation.harness.requests import Asker
from rotescale.evaluation.harness.results import Measured, rows_of
from rotescale.evaluation.items import Item
from rotescale.evaluation.metrics import Outcome, summarise
from rotescale.evaluation.outcome_file import read_head, read_outcomes, write_outcomes
from rotescale.evaluation.runner import Share, evaluate
from rotescale.evaluation.scoring import forward_of
from rotescale.records import EvaluationRow, RecordWriter
from rotescale.run_dir import RunDir
from rotescale.spec import EvaluationMode, EvaluationSpec


@dataclass(frozen=True)
class RunEvaluator:
    """Asks the run's questions of whatever the engine holds, stage by stage."""

    engine: Engine
    items: tuple[Item, ...]
    tokenizer: Any
    num_tokens: int
    mode: EvaluationMode
    spec: EvaluationSpec
    seed: int
    run_dir: RunDir
    attempt: int
    records: RecordWriter
    row_tokens: int
    """The budget of one pass, in nodes of token trees, where it pays to fill passes."""
    progress: Callable[[str, int, int], None]
    """Told the stage, and how many of how many answers there are, over all ranks."""
    benchmarks: Benchmarks | None = None

    def is_done(self, stage: str, epoch: int | None, checkpoint: str | None) -> bool:
        """Whether the stage's outcomes are on storage, of these very questions.

        With ``checkpoint``, the path of one below the run's root, only outcomes of that one count:
        the end of a phase that was trained again is another.
        """
        try:
            head = read_head(self.run_dir.evaluation(stage, epoch))
        except FileNotFoundError:
            return False
        if checkpoint is not None and head.get("checkpoint") != checkpoint:
            return False
        return bool(head["sample"] == self._sample())

    def evaluate(self, stage: str, epoch: int | None, checkpoint: str | None) -> None:
        """Collective: every rank calls this. Rank 0 writes the rows, then the outcomes.

        ``checkpoint`` is the path below the run's root of what the engine has loaded; None where
        it holds no checkpoint's weights.
        """
        believed = None if stage == "base" else self._beliefs()
        with self.engine.evaluation_model(self.mode) as model, _tree_attention(model):
            outcomes = evaluate(
                forward_of(model),
                model,
                self.items,
                tokenizer=self.tokenizer,
                num_tokens=self.num_tokens,
                rank=self.engine.rank,
                world_size=self.engine.world_size,
                collective=self._is_collective,
                gather=self.engine.all_gather,
                all_done=self._all_done,
                progress=lambda done: self.progress(stage, done, self._total),
                max_new_tokens=self.spec.max_new_tokens,
                token_budget=self._token_budget,
            )
            found = (
                None
                if self.benchmarks is None
                else self.benchmarks.measure(self._asker(model), stage=stage)
            )
        outcomes = with_believed(outcomes, beliefs(outcomes) if believed is None else believed)
        if self.engine.rank == 0:
            self._write(stage, epoch, checkpoint, outcomes, found)
            self.progress(stage, self._total, self._total)

    def _asker(self, model: Any) -> Asker:
        rank, world_size = self.engine.rank, self.engine.world_size
        return Asker(
            forward_of(model),
            model,
            tokenizer=self.tokenizer,
            num_tokens=self.num_tokens,
            share=Share(rank, world_size, self._is_collective),
            gather=self.engine.all_gather,
            all_done=self._all_done,
            token_budget=self._token_budget,
        )

    def _write(
        self,
        stage: str,
        epoch: int | None,
        checkpoint: str | None,
        outcomes: list[Outcome],
        found: Measured | None,
    ) -> None:
        if not self.run_dir.is_newest(self.attempt):
            # A superseded attempt leaves its successor's outcomes alone.
            return
        how: dict[str, Any] = {
            "stage": stage,
            "epoch": epoch,
            "seed": self.seed,
            "bootstrap_samples": self.spec.bootstrap_samples,
        }
        rows = [*summarise(outcomes, **how), *(rows_of(found, **how) if found else ())]
        for row in rows:
            self.records.append(EvaluationRow(attempt=self.attempt, **asdict(row)))
        # The rows first: the stage is done when its outcomes are there.
        self.records.flush()
        where = {"stage": stage, "epoch": epoch, "checkpoint": checkpoint}
        head = {**where, "sample": self._sample()}
        everything = [*outcomes, *(found.outcomes() if found else ())]
        write_outcomes(self.run_dir.evaluation(stage, epoch), head, everything)

    def _beliefs(self) -> dict[int, bool]:
        """What the untrained model was found to hold; DataError where that was not measured."""
        if not any(item.suite == CONFLICT for item in self.items):
            return {}
        path = self.run_dir.evaluation("base", None)
        try:
            return beliefs(read_outcomes(path))
        except FileNotFoundError:
            raise DataError(
                f"{path}: missing, so nothing says what the untrained model believes, which suite "
                f"{CONFLICT} is about; restore the file, or set evaluation.base under a new name"
            ) from None

    def _sample(self) -> dict[str, Any]:
        tasks, limit = self.spec.harness_tasks, self.spec.harness_limit
        asked = {"harness": {"tasks": list(tasks), "limit": limit}} if tasks else {}
        return {**self._numbers(), **asked}

    def _numbers(self) -> dict[str, int]:
        return {"items": len(self.items), "generated": sum(item.generate for item in self.items)}

    @property
    def _total(self) -> int:
        """Questions that are scored, and those among them that are also answered freely."""
        return sum(self._numbers().values())

    @property
    def _token_budget(self) -> int:
        on_gpu = self.engine.device.type == "cuda"
        return pass_budget(self.row_tokens, on_gpu=on_gpu, collective=self._is_collective)

    @property
    def _is_collective(self) -> bool:
        return self.mode == "sharded" and self.engine.world_size > 1

    def _all_done(self, done: bool) -> bool:
        """Collective where forward passes are; alone, a rank decides for itself."""
        if not self._is_collective:
            return done
        return self.engine.all_sum([0.0 if done else 1.0])[0] == 0.0


@contextmanager
def _tree_attention(model: Any) -> Iterator[None]:
    """Attention that takes a tree mask, for the time being: flash attention takes none."""
    trained_with = model.config._attn_implementation
    if trained_with in ("sdpa", "eager"):
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(trained_with)
