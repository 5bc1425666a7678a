"""A fact set as one JSON file: what a run keeps, so that its workers need no other file."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rotescale.errors import DataError
from rotescale.facts.generate import GeneratedPart
from rotescale.facts.types import Fact, FactSet, LazyFacts, PromptSet, Relation, entry_fields
from rotescale.storage import StoragePath, write_atomic


def save_fact_set(fact_set: FactSet, path: StoragePath) -> None:
    """Write the facts and relations to ``path``, whole or not at all.

    Of facts that are not held the recipes are written, in place of the facts.
    """
    raw: dict[str, Any] = {"relations": [asdict(relation) for relation in fact_set.relations]}
    if isinstance(fact_set.facts, LazyFacts):
        raw["generated"] = [part.recipe() for part in fact_set.facts.parts]
    else:
        raw["facts"] = [entry_fields(fact) for fact in fact_set.facts]
    write_atomic(path, json.dumps(raw, ensure_ascii=False, indent=1).encode())


def load_saved(path: StoragePath) -> FactSet:
    """The fact set that ``save_fact_set`` wrote. Raises DataError for any other file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        relations = tuple(_relation(entry) for entry in raw["relations"])
        if "generated" in raw:
            return FactSet(relations, LazyFacts(tuple(map(GeneratedPart.of, raw["generated"]))))
        return FactSet(relations, tuple(Fact(**_tuples(entry)) for entry in raw["facts"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no saved facts ({error}); start the run again") from error


def _relation(entry: dict[str, Any]) -> Relation:
    translations = tuple(PromptSet(**_tuples(one)) for one in entry.get("translations", ()))
    return Relation(**{**_tuples(entry), "translations": translations})


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
