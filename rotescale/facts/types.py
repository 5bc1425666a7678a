"""What a fact, a relation and a set of facts are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from rotescale.errors import DataError
from rotescale.spec import BASE_LANGUAGE

SUBJECT_FIELD = "{subject}"
"""Where a prompt names the subject."""

NUM_DISTRACTORS = 99
"""Distractors per fact where none are given: 100 options, so that chance is one percent."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One subject and its one object in a relation, with the wrong answers it is ranked against."""

    relation: str
    subject: str
    object: str
    distractors: tuple[str, ...]
    old_object: str | None = None
    """What a model is expected to hold before it is told ``object``; one of the distractors."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts of a relation in one language, each of which holds ``{subject}`` exactly once."""

    language: str
    train_prompts: tuple[str, ...]
    test_prompts: tuple[str, ...]
    unrelated_prompts: tuple[str, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """All of them: train, test, unrelated."""
        return (*self.train_prompts, *self.test_prompts, *self.unrelated_prompts)


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation and its prompts, each of which holds ``{subject}`` exactly once.

    The prompts of the relation itself are English; a translation has as many of each kind, and
    its prompt number i means what the English prompt number i means.
    """

    name: str
    wikidata_id: str
    subject_type: str
    object_type: str
    train_prompts: tuple[str, ...]
    test_prompts: tuple[str, ...]
    unrelated_prompts: tuple[str, ...]
    translations: tuple[PromptSet, ...] = ()
    """Other languages, by code."""

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes of the languages that there are prompts in; English first."""
        return (BASE_LANGUAGE, *(translation.language for translation in self.translations))

    def in_language(self, code: str) -> PromptSet:
        """The prompts in one language; DataError where there are none."""
        if code == BASE_LANGUAGE:
            return PromptSet(code, self.train_prompts, self.test_prompts, self.unrelated_prompts)
        for translation in self.translations:
            if translation.language == code:
                return translation
        raise DataError(
            f"relation {self.name!r} has no prompts in language {code!r}, only in: "
            f"{', '.join(self.languages)}; name one of them, or give the relation translations "
            "in a relations file"
        )

    @staticmethod
    def fill(prompt: str, subject: str) -> str:
        """The prompt about that subject; replaced, not formatted, so that other braces are text."""
        return prompt.replace(SUBJECT_FIELD, subject)


@dataclass(frozen=True, slots=True)
class FactSet:
    """Facts in a fixed order, and the relations that they are in."""

    relations: tuple[Relation, ...]
    facts: tuple[Fact, ...]

    def relation(self, name: str) -> Relation:
        """The relation of that name."""
        for relation in self.relations:
            if relation.name == name:
                return relation
        known = ", ".join(relation.name for relation in self.relations) or "none"
        raise DataError(
            f"relation {name!r} is not among these facts, whose relations are: {known}; "
            "name one of them, or load facts of that relation"
        )

    def of(self, name: str) -> tuple[Fact, ...]:
        """The facts of one relation, in order."""
        self.relation(name)
        return tuple(fact for fact in self.facts if fact.relation == name)

    def only(self, names: Iterable[str]) -> FactSet:
        """The facts of those relations, in the order of ``names``."""
        kept = tuple(dict.fromkeys(names))
        return FactSet(
            relations=tuple(self.relation(name) for name in kept),
            facts=tuple(fact for name in kept for fact in self.of(name)),
        )

    def digest(self) -> str:
        """sha256 of the canonical JSON of the relations and facts, one to a line, in order."""
        sha = hashlib.sha256()
        entries: tuple[Relation | Fact, ...] = (*self.relations, *self.facts)
        for entry in entries:
            values = entry_fields(entry)
            line = json.dumps(values, sort_keys=True, separators=(",", ":"), default=asdict)
            sha.update(line.encode("ascii") + b"\n")
        return sha.hexdigest()


def entry_fields(entry: Relation | Fact) -> dict[str, Any]:
    """The fields by name, without ``old_object`` where a fact has none."""
    values = {field.name: getattr(entry, field.name) for field in fields(entry)}
    if values.get("old_object", "") is None:
        del values["old_object"]
    return values


def combine(fact_sets: Iterable[FactSet]) -> FactSet:
    """One set of several that share no relation, in order."""
    sets = tuple(fact_sets)
    relations = tuple(relation for one in sets for relation in one.relations)
    names = [relation.name for relation in relations]
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"relation {name!r} is in two of the fact sets to combine; "
                "give each relation's facts in one set"
            )
    return FactSet(relations=relations, facts=tuple(fact for one in sets for fact in one.facts))
