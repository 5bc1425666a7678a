"""Writes a fact set as rotescale's own files: a CSV per relation, and the relations' YAML."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from rotescale.errors import DataError
from rotescale.facts.types import Fact, FactSet, PromptSet, Relation
from rotescale.storage import write_atomic

RELATIONS_FILE = "relations.yaml"


def write_files(fact_set: FactSet, folder: Path) -> list[Path]:
    """Write the facts of each relation, and all prompts, into the folder; returns the CSVs.

    Raises DataError where the folder holds something already, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is there and not an empty folder; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for relation in fact_set.relations:
        paths.append(folder / f"{relation.name}.csv")
        write_atomic(paths[-1], _table(fact_set.of(relation.name)).encode())
    entries = {relation.name: _entry(relation) for relation in fact_set.relations}
    text = yaml.safe_dump(entries, allow_unicode=True, sort_keys=False, width=100)
    write_atomic(folder / RELATIONS_FILE, text.encode())
    return paths


def _table(facts: Sequence[Fact]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    # Only where there are any, so that the files of other facts stay as they were.
    has_old = any(fact.old_object is not None for fact in facts)
    writer.writerow(["subject", "object", "distractors", *(["old_object"] if has_old else [])])
    for fact in facts:
        distractors = json.dumps(fact.distractors, ensure_ascii=False)
        old = [fact.old_object or ""] if has_old else []
        writer.writerow([fact.subject, fact.object, distractors, *old])
    return text.getvalue()


def _prompts(prompts: PromptSet) -> dict[str, list[str]]:
    values = {
        "train_prompts": list(prompts.train_prompts),
        "test_prompts": list(prompts.test_prompts),
        "unrelated_prompts": list(prompts.unrelated_prompts),
    }
    return {field: value for field, value in values.items() if value}


def _entry(relation: Relation) -> dict[str, object]:
    """The relation as a relations file has it, without what is empty."""
    values = {
        "wikidata_id": relation.wikidata_id,
        "subject_type": relation.subject_type,
        "object_type": relation.object_type,
        "train_prompts": list(relation.train_prompts),
        "test_prompts": list(relation.test_prompts),
        "unrelated_prompts": list(relation.unrelated_prompts),
        "translations": {
            translation.language: _prompts(translation) for translation in relation.translations
        },
    }
    return {field: value for field, value in values.items() if value}
