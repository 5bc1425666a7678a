"""Whether the runs of a study are about the same facts, relation by relation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rotescale.errors import DataError
from rotescale.facts import FactSet
from rotescale.facts.saved import load_saved
from rotescale.run_dir import RunDir


def check_same_facts(found: Iterable[tuple[str, FactSet]]) -> None:
    """Raise DataError where two runs, each with its name, have other facts of one relation.

    Prompts belong to a relation's facts, and so do distractors.
    """
    known: dict[str, tuple[str, str]] = {}
    for name, fact_set in found:
        for relation in fact_set.relations:
            digest = fact_set.only([relation.name]).digest()
            earlier, theirs = known.setdefault(relation.name, (name, digest))
            if theirs != digest:
                raise DataError(
                    f"{earlier} and {name}: runs about different facts of {relation.name}; one "
                    "table cannot hold both: run them again about the same ones, or keep them in "
                    "two studies"
                )


def saved_facts(runs: Iterable[RunDir]) -> Iterator[tuple[str, FactSet]]:
    """Names of runs that were begun, and their facts; equal files are read once."""
    seen: set[bytes] = set()
    for run in runs:
        if not run.facts_json.exists():
            continue
        text = run.facts_json.read_bytes()
        if text not in seen:
            seen.add(text)
            yield run.root.name, load_saved(run.facts_json)
