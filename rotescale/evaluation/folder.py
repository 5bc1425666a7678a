"""Measures any Hugging Face model folder on facts, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rotescale.evaluation.items import Item, build_items
from rotescale.evaluation.metrics import summarise
from rotescale.evaluation.runner import evaluate
from rotescale.evaluation.scoring import forward_of
from rotescale.facts import FactSet
from rotescale.model.folder import check_folder, load_tokenizer
from rotescale.records import EvaluationRow
from rotescale.spec import EvaluationSpec

STAGE = "model"
"""The stage's name in the rows: the folder as it is."""


def known_key_tokens(folder: Path, fact_set: FactSet, *, template: str) -> dict[str, str]:
    """The key token of each relation, where the folder's tokenizer has it as one token."""
    tokenizer = load_tokenizer(folder)
    texts = {r.name: template.replace("{relation}", r.name) for r in fact_set.relations}
    vocabulary = tokenizer.get_added_vocab()
    return {name: text for name, text in texts.items() if text in vocabulary}


def folder_items(
    fact_set: FactSet,
    *,
    key_tokens: Mapping[str, str],
    trained: frozenset[int],
    asked: frozenset[int] | None,
    spec: EvaluationSpec,
    seed: int,
) -> tuple[Item, ...]:
    """The questions for a model folder; those with a key token only where it is known."""
    tokens = {relation.name: key_tokens.get(relation.name, "") for relation in fact_set.relations}
    items = build_items(
        fact_set, trained=trained, asked=asked, key_tokens=tokens, spec=spec, seed=seed
    )
    return tuple(i for i in items if i.prompts != "key_token" or i.relation in key_tokens)


def evaluate_folder(
    folder: Path,
    items: tuple[Item, ...],
    *,
    spec: EvaluationSpec,
    seed: int,
    progress: Callable[[int], None],
) -> tuple[EvaluationRow, ...]:
    """The rows of all items, asked of the model in ``folder`` in this process.

    Raises DataError where the folder is no whole model.
    """
    check_folder(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)
    with torch.inference_mode():
        outcomes = evaluate(
            forward_of(model),
            model,
            items,
            tokenizer=tokenizer,
            num_tokens=max(tokenizer.get_vocab().values()) + 1,
            rank=0,
            world_size=1,
            collective=False,
            gather=lambda answers: [answers],
            all_done=bool,
            progress=progress,
            max_new_tokens=spec.max_new_tokens,
        )
    rows = summarise(
        outcomes,
        stage=STAGE,
        epoch=None,
        seed=seed,
        suite="core",
        bootstrap_samples=spec.bootstrap_samples,
    )
    return tuple(EvaluationRow(attempt=0, **asdict(row)) for row in rows)
