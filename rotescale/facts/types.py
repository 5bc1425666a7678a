"""What a fact, a relation and a set of facts are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from typing import Any, Protocol, overload

from rotescale.errors import DataError
from rotescale.spec import BASE_LANGUAGE

SUBJECT_FIELD = "{subject}"
"""Where a prompt names the subject."""

NUM_DISTRACTORS = 99
"""Distractors per fact where none are given: 100 options, so that chance is one percent."""


HELD_FACTS = 100_000
"""Generated facts of one relation that are held in memory. Of more, each is made when it is asked
for, and only among the first so many of a relation are facts drawn to be asked about."""


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


class MadeFacts(Protocol):
    """Facts of one relation that are a pure function of their index."""

    @property
    def relation(self) -> str:
        """The relation of all of them."""

    @property
    def num_facts(self) -> int:
        """How many there are."""

    def pair(self, index: int) -> tuple[str, str]:
        """Subject and object of one: what training needs, and much faster than the whole fact."""

    def fact(self, index: int) -> Fact:
        """One of them, with its distractors."""

    def recipe(self) -> dict[str, Any]:
        """What they are made from, as JSON: equal recipes make equal facts."""


@dataclass(frozen=True, slots=True)
class LazyFacts(Sequence[Fact]):
    """Facts that nobody holds, part after part: any number of them takes no memory."""

    parts: tuple[MadeFacts, ...]

    def __len__(self) -> int:
        return sum(part.num_facts for part in self.parts)

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Fact, ...]: ...
    def __getitem__(self, index: int | slice) -> Fact | tuple[Fact, ...]:
        if isinstance(index, slice):
            return tuple(self[one] for one in range(len(self))[index])
        part, inside = self._find(index)
        return part.fact(inside)

    def pair(self, index: int) -> tuple[str, str]:
        """Subject and object of one fact."""
        part, inside = self._find(index)
        return part.pair(inside)

    def places(self, relation: str) -> range:
        """Where the facts of a relation are."""
        stops = list(accumulate(part.num_facts for part in self.parts))
        for part, stop in zip(self.parts, stops, strict=True):
            if part.relation == relation:
                return range(stop - part.num_facts, stop)
        return range(0)

    def _find(self, index: int) -> tuple[MadeFacts, int]:
        inside = range(len(self))[index]
        for part in self.parts:
            if inside < part.num_facts:
                return part, inside
            inside -= part.num_facts
        raise IndexError(index)


@dataclass(frozen=True, slots=True)
class FactSet:
    """Facts in a fixed order, and the relations that they are in."""

    relations: tuple[Relation, ...]
    facts: Sequence[Fact]
    """A tuple; or facts that are made when they are asked for, in the order of the relations."""

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

    def of(self, name: str) -> Sequence[Fact]:
        """The facts of one relation, in order."""
        self.relation(name)
        if isinstance(self.facts, LazyFacts):
            return LazyFacts(tuple(part for part in self.facts.parts if part.relation == name))
        return tuple(fact for fact in self.facts if fact.relation == name)

    def places(self, name: str) -> Sequence[int]:
        """The places of one relation's facts, in order."""
        if isinstance(self.facts, LazyFacts):
            return self.facts.places(name)
        return [place for place, fact in enumerate(self.facts) if fact.relation == name]

    def pair(self, place: int) -> tuple[str, str]:
        """Subject and object of the fact at a place, without its distractors."""
        if isinstance(self.facts, LazyFacts):
            return self.facts.pair(place)
        fact = self.facts[place]
        return fact.subject, fact.object

    def without_distractors(self) -> FactSet:
        """The same subjects and objects: what training needs, and little to send elsewhere."""
        if isinstance(self.facts, LazyFacts):
            return self
        facts = tuple(Fact(one.relation, one.subject, one.object, ()) for one in self.facts)
        return FactSet(self.relations, facts)

    @property
    def is_held(self) -> bool:
        """Whether the facts lie in memory, so that it costs nothing to look at each."""
        return not isinstance(self.facts, LazyFacts)

    def only(self, names: Iterable[str]) -> FactSet:
        """The facts of those relations, in the order of ``names``."""
        kept = tuple(dict.fromkeys(names))
        relations = tuple(self.relation(name) for name in kept)
        if isinstance(self.facts, LazyFacts):
            of = {part.relation: part for part in self.facts.parts}
            return FactSet(relations, LazyFacts(tuple(of[name] for name in kept)))
        return FactSet(relations, tuple(fact for name in kept for fact in self.of(name)))

    def digest(self) -> str:
        """sha256 of the canonical JSON of the relations and facts, one to a line, in order.

        In place of facts that are not held stand the recipes by which they are made.
        """
        sha = hashlib.sha256()
        facts = (
            (part.recipe() for part in self.facts.parts)
            if isinstance(self.facts, LazyFacts)
            else map(entry_fields, self.facts)
        )
        for values in (*map(entry_fields, self.relations), *facts):
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
    lazy = [one.facts for one in sets if isinstance(one.facts, LazyFacts)]
    if lazy:
        assert len(lazy) == len(sets), "facts that are held beside facts that are not"
        return FactSet(relations, LazyFacts(tuple(part for facts in lazy for part in facts.parts)))
    return FactSet(relations, tuple(fact for one in sets for fact in one.facts))
