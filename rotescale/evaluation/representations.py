"""Keeps the hidden states of one stage of a run, and measures them; or those of a model folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rotescale.engine.base import Engine
from rotescale.evaluation.similarity import Measuring, similarity_rows
from rotescale.evaluation.state_file import open_states, sample_digest, write_states
from rotescale.evaluation.states import States, StateText, gather_states, read_states
from rotescale.model.folder import check_folder, load_tokenizer
from rotescale.records import EvaluationRow, RecordWriter
from rotescale.run_dir import RunDir
from rotescale.spec import EvaluationMode, EvaluationSpec


@dataclass(frozen=True)
class RunRepresentations:
    """Reads the states of the run's prompts in whatever the engine holds, stage by stage."""

    engine: Engine
    texts: tuple[StateText, ...]
    tokenizer: Any
    mode: EvaluationMode
    spec: EvaluationSpec
    seed: int
    run_dir: RunDir
    attempt: int
    records: RecordWriter
    progress: Callable[[str, int, int], None]
    """Told the stage, and how many of how many texts are read, over all ranks."""

    def is_done(self, stage: str, epoch: int | None, checkpoint: str | None) -> bool:
        """Whether the stage's states are on storage, of these very texts.

        With ``checkpoint``, the path of one below the run's root, only states of that one count.
        """
        try:
            head = open_states(self.run_dir.representations(stage, epoch)).head
        except FileNotFoundError:
            return False
        if checkpoint is not None and head.get("checkpoint") != checkpoint:
            return False
        return bool(head.get("sample") == self._sample)

    def evaluate(self, stage: str, epoch: int | None, checkpoint: str | None) -> None:
        """Collective: every rank calls this. Rank 0 writes the rows, then the states.

        ``checkpoint`` is the path below the run's root of what the engine has loaded; None where
        it holds no checkpoint's weights.
        """
        engine = self.engine
        with engine.evaluation_model(self.mode) as model:
            own = read_states(
                model,
                [text.text for text in self.texts],
                tokenizer=self.tokenizer,
                rank=engine.rank,
                world_size=engine.world_size,
                collective=self.mode == "sharded" and engine.world_size > 1,
                progress=lambda done: self.progress(stage, done, len(self.texts)),
            )
        states = gather_states(
            own,
            rank=engine.rank,
            num_texts=len(self.texts),
            dtype=self.spec.representation_dtype,
            gather=engine.all_gather,
        )
        if states is not None:
            self._write(stage, epoch, checkpoint, states)

    def _write(self, stage: str, epoch: int | None, checkpoint: str | None, states: States) -> None:
        if not self.run_dir.is_newest(self.attempt):
            # A superseded attempt leaves its successor's states alone.
            return
        measuring = Measuring(
            stage, epoch, self.seed, self.spec.bootstrap_samples, attempt=self.attempt
        )
        for row in state_rows(states, self.texts, measuring=measuring):
            self.records.append(row)
        # The rows first: the stage is done when its states are there.
        self.records.flush()
        head = {"stage": stage, "epoch": epoch, "checkpoint": checkpoint, "sample": self._sample}
        write_states(self.run_dir.representations(stage, epoch), states, self.texts, head=head)

    @cached_property
    def _sample(self) -> str:
        return sample_digest(self.texts, dtype=self.spec.representation_dtype)


def state_rows(
    states: States, texts: Sequence[StateText], *, measuring: Measuring
) -> tuple[EvaluationRow, ...]:
    """The rows of all layers of states (num_layers, num_texts, hidden)."""
    return tuple(
        row
        for layer, of_layer in enumerate(states)
        for row in similarity_rows(of_layer, texts, layer=layer, measuring=measuring)
    )


def folder_states(
    folder: Path, texts: Sequence[StateText], *, progress: Callable[[int], None]
) -> States:
    """The states (num_layers, num_texts, hidden) float32 in the model in ``folder``.

    In this process. Raises DataError where the folder is no whole model.
    """
    check_folder(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()
    own = read_states(
        model,
        [text.text for text in texts],
        tokenizer=load_tokenizer(folder),
        rank=0,
        world_size=1,
        collective=False,
        progress=progress,
    )
    states = gather_states(
        own, rank=0, num_texts=len(texts), dtype="float32", gather=lambda value: [value]
    )
    assert states is not None
    return states
