"""A run is prepared from facts of every source that a spec can name."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from rotescale.facts import iter_pairs, shipped_relations
from rotescale.facts.saved import load_saved
from rotescale.launch_spec import LaunchSpec
from rotescale.preparation import Resolved, load_facts, prepare_run
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec

MICRO = Path(__file__).parents[2] / "configs" / "experiments" / "micro.yaml"
PAIRS = list(iter_pairs("mother", num_facts=100, seed=1))
OBJECTS = [mother for _, mother in PAIRS]


def write_trex(folder: Path) -> str:
    """A folder whose distractors hold the object in every row."""
    prompts = folder / "prompt_template" / "mother"
    prompts.mkdir(parents=True)
    mother = shipped_relations()["mother"]
    for name, texts in (("train", mother.train_prompts), ("test", mother.test_prompts)):
        with (prompts / f"{name}.csv").open("w", newline="") as file:
            rows = [("question",), *((text.replace("{subject}", "{head}"),) for text in texts)]
            csv.writer(file).writerows(rows)
    with (folder / "mother.csv").open("w", newline="") as file:
        rows = [("Head", "Fact", "Alternate Facts"), *((*pair, str(OBJECTS)) for pair in PAIRS)]
        csv.writer(file).writerows(rows)
    return f"{{source: trex, path: {folder}, repair: true}}"


def write_columns(folder: Path) -> str:
    path = folder / "mother.tsv"
    path.write_text("\n".join(["Person\tMum", *(f"{a}\t{b}" for a, b in PAIRS)]))
    return f"{{source: files, paths: [{path}], columns: {{subject: Person, object: Mum}}}}"


def write_dataset(folder: Path) -> str:
    table = {"subject": [child for child, _ in PAIRS], "object": OBJECTS}
    parquet.write_table(pyarrow.table(table), folder / "train.parquet")
    return f"{{source: dataset, dataset: {folder}, relation: mother}}"


@pytest.mark.parametrize("write", [write_trex, write_columns, write_dataset])
def test_a_run_is_prepared(write: object, tmp_path: Path, model_cache: Path) -> None:
    assert callable(write)
    folder = tmp_path / "facts"
    folder.mkdir()
    spec = load_spec(ExperimentSpec, MICRO, [f"facts={write(folder)}"])
    launch = LaunchSpec(storage=str(tmp_path / "runs"), model_cache=str(model_cache))
    notes: list[str] = []
    assert len(load_facts(spec, note=notes.append).facts) == 100
    assert len(notes) == (write is write_trex)
    run_dir = prepare_run(spec, launch)
    assert Resolved.read(run_dir).num_examples == {"memorize": 100, "generalize": 50}
    facts = load_saved(run_dir.facts_json).facts
    assert [(fact.subject, fact.object) for fact in facts] == PAIRS
    assert {len(fact.distractors) for fact in facts} == {99}
    saved = json.loads(run_dir.spec_json.read_text())
    assert load_spec(ExperimentSpec, run_dir.spec_json) == spec, saved
    assert prepare_run(spec, launch).root == run_dir.root, "the same spec goes on"
