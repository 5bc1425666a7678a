"""Hidden states under ZeRO-3 on two ranks equal those of transformers in one process."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import QUICK, micro_spec, prepare, run_workers
from transformers import AutoModelForCausalLM, AutoTokenizer

from rotescale.evaluation.similarity import unit_states
from rotescale.evaluation.state_file import StateFile, open_states
from rotescale.records import read_records
from rotescale.run_dir import Outcome, RunDir
from rotescale.storage import remove

KEPT = (
    *QUICK,
    "facts.relations=[mother, author]",
    "phases.0.facts_per_relation=6",
    "phases.1.facts_per_relation=2",
    # As with a large model: nothing stays gathered, and every pass is a collective.
    "engine.persistence_threshold=0",
    "engine.evaluation_mode=sharded",
    "evaluation.base=true",
    "evaluation.test_prompts=2",
    "evaluation.unrelated_prompts=1",
    "evaluation.representation_facts=3",
    "evaluation.bootstrap_samples=50",
    "phases.0.evaluate_epochs=[1]",
)
STAGES = [("base", None), ("memorize", 1), ("memorize", None), ("generalize", None)]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> RunDir:
    """A run on two sharded ranks that kept its states at every stage."""
    storage = tmp_path_factory.mktemp("run")
    run_dir = prepare(micro_spec(*KEPT), storage, cache=model_cache, num_workers=2)
    assert run_workers(run_dir, world_size=2) == [0, 0]
    outcome = Outcome.read(run_dir)
    assert outcome is not None
    assert outcome.status == "finished", outcome.message
    return run_dir


@torch.no_grad()
def direct(folder: Path, file: StateFile) -> Any:
    """(num_layers, num_texts, hidden): one pass of transformers for each text."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in file.texts:
        ids = tokenizer(text.text, return_tensors="pt")["input_ids"]
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        found.append(torch.stack([state[0, -1] for state in states]))
    return torch.stack(found, dim=1).numpy()


@pytest.mark.parametrize("phase", ["memorize", "generalize"])
def test_sharded_states_and_cosines_are_those_of_transformers(run_dir: RunDir, phase: str) -> None:
    file = open_states(run_dir.representations(phase, None))
    expected = direct(run_dir.model_folder(phase), file)
    assert len(file.layers) == len(expected)
    rows = [
        row
        for row in read_records(run_dir).evaluations
        if (row.stage, row.epoch, row.suite) == (phase, None, "representations")
    ]
    for layer, states in enumerate(expected):
        np.testing.assert_allclose(file.layer(layer), states, rtol=1e-5, atol=1e-5)
        for row in rows:
            if row.layer == layer:
                computed = value_of(row, states, file)
                assert row.value == pytest.approx(computed, abs=1e-5), row
    assert {row.metric for row in rows} == {"delta_cosine", "cosine"}
    assert {row.split for row in rows} == {"trained", "held_out"}


def value_of(row: Any, states: Any, file: StateFile) -> float:
    """The row's value, pair by pair."""
    units = unit_states(states)
    of_row = [
        (text, unit)
        for text, unit in zip(file.texts, units, strict=True)
        if (text.split, text.prompts) == (row.split, row.prompts)
    ]
    if row.metric == "cosine":
        keys = {
            t.fact: u for t, u in zip(file.texts, units, strict=True) if t.prompts == "key_token"
        }
        return float(np.mean([keys[text.fact] @ unit for text, unit in of_row]))
    within, between = [], []
    for one, a in of_row:
        for other, b in of_row:
            if one.relation != other.relation:
                between.append(a @ b)
            elif one.fact != other.fact:
                within.append(a @ b)
    return float(np.mean(within) - np.mean(between))


def test_every_stage_is_kept_and_moves_the_states(run_dir: RunDir) -> None:
    files = [open_states(run_dir.representations(*stage)) for stage in STAGES]
    assert [(file.head["stage"], file.head["epoch"]) for file in files] == STAGES
    assert len({file.texts for file in files}) == 1
    kinds = [text.prompts for text in files[0].texts]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        **{"key_token": 6, "train": 6},
        **{"test": 12, "unrelated": 6},
    }
    last = [file.layer(len(file.layers) - 1) for file in files]
    for before, after in pairwise(last):
        assert np.abs(after - before).max() > 1e-3


def test_only_what_is_missing_is_measured_again(run_dir: RunDir) -> None:
    """This time by a whole copy on each rank, which gives the same states."""
    kept = {stage: run_dir.representations(*stage) for stage in STAGES}
    unchanged = [run_dir.evaluation("generalize", None), *(kept[stage] for stage in STAGES[:-1])]
    written = [path.stat().st_mtime_ns for path in unchanged]
    path = kept["generalize", None]
    before = open_states(path)
    layers = [before.layer(number) for number in range(len(before.layers))]
    remove(path)
    Outcome.clear(run_dir)
    resolved = json.loads(run_dir.resolved_json.read_text())
    assert resolved["evaluation_mode"] == "sharded"
    replicated = json.dumps(resolved | {"evaluation_mode": "replicated"})
    run_dir.resolved_json.write_text(replicated)
    assert run_workers(run_dir, world_size=2) == [0, 0]
    assert [path.stat().st_mtime_ns for path in unchanged] == written
    after = open_states(path)
    assert (after.head, after.texts) == (before.head, before.texts)
    for number, layer in enumerate(layers):
        np.testing.assert_allclose(after.layer(number), layer, rtol=1e-5, atol=1e-5)
