"""Which facts and prompts a phase trains on, as texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rotescale.data.encoding import FactText, prompt_text
from rotescale.data.order import derive_key, permute
from rotescale.errors import SpecError
from rotescale.facts import FactSet, Relation, Wording
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


def select_facts(fact_set: FactSet, *, facts_per_relation: int | None, seed: int) -> list[int]:
    """The places of k facts of each relation, drawn from ``seed``; all facts where k is None.

    The draw is nested: the facts of a small k are among those of a larger one.
    """
    selected: list[int] = []
    for relation in fact_set.relations:
        places = [i for i, fact in enumerate(fact_set.facts) if fact.relation == relation.name]
        if facts_per_relation is None:
            selected += places
            continue
        if facts_per_relation > len(places):
            raise SpecError(
                f"facts_per_relation: {facts_per_relation} facts asked for, but relation "
                f"{relation.name!r} has {len(places)}; ask for at most that many"
            )
        key = derive_key(seed, "facts", relation.name)
        drawn = permute(np.arange(facts_per_relation), size=len(places), key=key)
        selected += sorted(places[i] for i in drawn)
    return selected


def phase_examples(
    fact_set: FactSet, phase: PhaseSpec, *, wording: Wording, seed: int
) -> Iterator[Example]:
    """Every example of a phase, in the order of the facts: k facts × p prompts of each relation.

    Raises SpecError where k or p is more than there is.
    """
    chosen = select_facts(fact_set, facts_per_relation=phase.facts_per_relation, seed=seed)
    for place in chosen:
        fact = fact_set.facts[place]
        if phase.text == "key_token":
            prompt = wording.key_prompt(fact.relation)
            text = prompt_text(fact.subject, fact.object, prompt=prompt)
            yield Example(place, KEY_TOKEN_PROMPT, text)
            continue
        prompts = _train_prompts(fact_set.relation(fact.relation), phase)
        for number in _prompt_numbers(phase, fact.relation, len(prompts), seed=seed):
            text = prompt_text(fact.subject, fact.object, prompt=wording.prompt(prompts[number]))
            yield Example(place, number, text)


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
) -> frozenset[int]:
    """The facts that any phase tells; all of them where none is told with a key token.

    Only these are asked about: a fact that no phase told is no held-out fact, just unknown.
    """
    if not any(phase.text == "key_token" for phase in phases):
        return frozenset(range(len(fact_set.facts)))
    return frozenset(
        place
        for phase in phases
        for place in select_facts(fact_set, facts_per_relation=phase.facts_per_relation, seed=seed)
    )


def trained_facts(fact_set: FactSet, phases: tuple[PhaseSpec, ...], *, seed: int) -> frozenset[int]:
    """The facts that any phase tells with a prompt of their own; the others are held out."""
    return frozenset(
        place
        for phase in phases
        if phase.text == "prompts" and phase.stand_in is None
        for place in select_facts(fact_set, facts_per_relation=phase.facts_per_relation, seed=seed)
    )
