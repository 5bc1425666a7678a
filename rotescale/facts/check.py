"""Refuses facts that cannot be memorized or ranked as they stand, naming the row."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from rotescale.errors import DataError
from rotescale.facts.text import normalise, text_fault
from rotescale.facts.types import Fact, FactSet

# A relation's facts mostly draw their options from one pool of names, so each is met many times.
_normalised = lru_cache(maxsize=100_000)(normalise)
_fault = lru_cache(maxsize=100_000)(text_fault)


def validate(fact_set: FactSet, *, where: Callable[[int], str]) -> None:
    """Raise a DataError for the first fact at fault; ``where(index)`` names its file and row."""
    if not fact_set.facts:
        raise DataError("there are no facts; give at least one row of subject and object")
    known = {relation.name for relation in fact_set.relations}
    subjects: dict[tuple[str, str], int] = {}
    first_of: dict[str, int] = {}
    for index, fact in enumerate(fact_set.facts):
        if fact.relation not in known:
            raise DataError(unknown_relation(fact.relation, known, where=where(index)))
        _check_names(fact, where=where(index))
        earlier = subjects.setdefault((fact.relation, _normalised(fact.subject)), index)
        if earlier != index:
            raise DataError(
                f"{where(index)}: subject {fact.subject!r} is already in relation "
                f"{fact.relation!r} at {where(earlier)}; keep one fact per subject"
            )
        _check_distractors(fact, where=where(index))
        first = first_of.setdefault(fact.relation, index)
        expected = len(fact_set.facts[first].distractors)
        if len(fact.distractors) != expected:
            raise DataError(
                f"{where(index)}: {len(fact.distractors)} distractors, but {expected} at "
                f"{where(first)}; give every fact of relation {fact.relation!r} as many"
            )


def unknown_relation(name: str, known: set[str], *, where: str) -> str:
    """The message for a fact of a relation without prompts."""
    names = ", ".join(sorted(known)) or "none"
    return (
        f"{where}: no prompts are known for relation {name!r}, only for: {names}; "
        "correct the name, or give a relations file that has it"
    )


def _check_names(fact: Fact, *, where: str) -> None:
    for field, value in (("subject", fact.subject), ("object", fact.object)):
        fault = _fault(value)
        if fault is not None:
            raise DataError(f"{where}: {field} {fault}")


def _check_distractors(fact: Fact, *, where: str) -> None:
    """Distinct names, at least one, none of them the object."""
    if not fact.distractors:
        raise DataError(f"{where}: no distractors; give at least one wrong answer")
    seen = {_normalised(fact.object): 0}
    for number, distractor in enumerate(fact.distractors, start=1):
        fault = _fault(distractor)
        if fault is not None:
            raise DataError(f"{where}: distractor {number} {fault}")
        earlier = seen.setdefault(_normalised(distractor), number)
        if earlier == 0:
            raise DataError(
                f"{where}: distractor {number} {distractor!r} is the object itself; remove it"
            )
        if earlier != number:
            raise DataError(
                f"{where}: distractor {number} {distractor!r} repeats distractor {earlier}; "
                "give distinct ones"
            )
