"""Which facts and prompts a phase trains on, as texts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from rotescale.data.encoding import FactText, prompt_text
from rotescale.data.order import derive_key, permute
from rotescale.errors import SpecError
from rotescale.facts import HELD_FACTS, FactSet, Relation, Wording
from rotescale.facts.suites import stand_in_prompts
from rotescale.spec import PhaseSpec

KEY_TOKEN_PROMPT = -1
"""Stands in place of a prompt's number where the key token joins subject and object."""


@dataclass(frozen=True, slots=True)
class Example:
    """A fact, by its place in the fact set, told with one prompt, by its place in the relation."""

    fact: int
    prompt: int
    text: FactText


def select_facts(fact_set: FactSet, *, facts_per_relation: int | None, seed: int) -> Sequence[int]:
    """The places of k facts of each relation, drawn from ``seed``; all facts where k is None.

    The draw is nested: the facts of a small k are among those of a larger one.
    """
    if facts_per_relation is None and not fact_set.is_held:
        return range(len(fact_set.facts))
    return [
        place
        for relation in fact_set.relations
        for place in _of_relation(fact_set, relation.name, number=facts_per_relation, seed=seed)
    ]


def _of_relation(
    fact_set: FactSet, relation: str, *, number: int | None, seed: int
) -> Sequence[int]:
    """The places of so many facts of a relation, in order."""
    places = fact_set.places(relation)
    if number is None:
        return places
    if number > len(places):
        raise SpecError(
            f"facts_per_relation: {number} facts asked for, but relation "
            f"{relation!r} has {len(places)}; ask for at most that many"
        )
    key = derive_key(seed, "facts", relation)
    drawn = permute(np.arange(number), size=len(places), key=key)
    return sorted(places[i] for i in drawn)


@dataclass(frozen=True, slots=True)
class _Told:
    """The facts of one relation and the prompts, by number, that each of them is told with."""

    relation: str
    places: Sequence[int]
    prompts: tuple[tuple[int, str], ...]

    def __len__(self) -> int:
        return len(self.places) * len(self.prompts)


@dataclass(frozen=True, slots=True)
class PhaseExamples(Sequence[Example]):
    """Every example of a phase, in the order of the facts, each made when it is asked for."""

    fact_set: FactSet
    told: tuple[_Told, ...]

    def __len__(self) -> int:
        return sum(map(len, self.told))

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[one] for one in range(len(self))[index]]
        inside = range(len(self))[index]
        for told in self.told:
            if inside < len(told):
                at, which = divmod(inside, len(told.prompts))
                number, prompt = told.prompts[which]
                subject, object_ = self.fact_set.pair(told.places[at])
                text = prompt_text(subject, object_, prompt=prompt)
                return Example(told.places[at], number, text)
            inside -= len(told)
        raise IndexError(index)


def phase_examples(
    fact_set: FactSet, phase: PhaseSpec, *, wording: Wording, seed: int
) -> PhaseExamples:
    """The examples of a phase: k facts × p prompts of each relation.

    Raises SpecError where k or p is more than there is.
    """
    told = []
    for relation in fact_set.relations:
        name, number = relation.name, phase.facts_per_relation
        places = _of_relation(fact_set, name, number=number, seed=seed)
        if phase.text == "key_token":
            told.append(_Told(name, places, ((KEY_TOKEN_PROMPT, wording.key_prompt(name)),)))
            continue
        prompts = _train_prompts(relation, phase)
        numbers = _prompt_numbers(phase, name, len(prompts), seed=seed)
        worded = tuple((number, wording.prompt(prompts[number])) for number in numbers)
        told.append(_Told(name, places, worded))
    return PhaseExamples(fact_set, tuple(told))


def _train_prompts(relation: Relation, phase: PhaseSpec) -> tuple[str, ...]:
    """The relation's own, or those of the phase's stand-in."""
    if phase.stand_in is None:
        return relation.train_prompts
    spec = phase.stand_in
    return stand_in_prompts(spec.name, spec.train_prompts, spec.test_prompts)[0]


def _prompt_numbers(phase: PhaseSpec, relation: str, available: int, *, seed: int) -> list[int]:
    """The places of p train prompts: the first ones, or a nested draw."""
    if phase.num_prompts > available:
        raise SpecError(
            f"phases.{phase.name}.num_prompts: {phase.num_prompts} asked for, but relation "
            f"{relation!r} has {available} train prompts; ask for at most that many"
        )
    numbers = np.arange(phase.num_prompts)
    if phase.prompt_choice == "random":
        key = derive_key(seed, "prompts", relation)
        numbers = permute(numbers, size=available, key=key)
    return [int(number) for number in numbers]


def memorized_facts(
    fact_set: FactSet, phases: tuple[PhaseSpec, ...], *, seed: int
) -> Collection[int]:
    """The facts that any phase tells; all of them where none is told with a key token.

    Only these are asked about: a fact that no phase told is no held-out fact, just unknown. Of
    facts that are not held, at most ``HELD_FACTS`` of each relation and phase.
    """
    wanted = {phase.facts_per_relation for phase in phases}
    if not any(phase.text == "key_token" for phase in phases):
        wanted.add(None)
    return frozenset(
        place
        for number in wanted
        for relation in fact_set.relations
        for place in _of_relation(
            fact_set, relation.name, number=_askable(fact_set, number), seed=seed
        )[: None if fact_set.is_held else HELD_FACTS]
    )


def _askable(fact_set: FactSet, number: int | None) -> int | None:
    """How many facts are drawn to choose from, where ``number`` are told; None: all of them."""
    return number if number is None or fact_set.is_held else min(number, HELD_FACTS)


def trained_facts(
    fact_set: FactSet, phases: tuple[PhaseSpec, ...], *, seed: int
) -> Collection[int]:
    """The facts that any phase tells with a prompt of their own; the others are held out."""
    wanted = [p.facts_per_relation for p in phases if p.text == "prompts" and p.stand_in is None]
    if None in wanted:
        return range(len(fact_set.facts))
    return frozenset(
        place
        for number in wanted
        for place in select_facts(fact_set, facts_per_relation=number, seed=seed)
    )
