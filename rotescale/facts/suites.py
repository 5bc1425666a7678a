"""What ships for questions beyond a relation's own prompts: reversed ones, and two-hop chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from rotescale.errors import DataError
from rotescale.facts.prompts import SHIPPED_DIR
from rotescale.facts.text import normalise
from rotescale.facts.types import SUBJECT_FIELD, FactSet


@dataclass(frozen=True, slots=True)
class Chain:
    """Prompts about the subject of a first relation, answered by a second one's object."""

    first: str
    second: str
    prompts: tuple[str, ...]


@cache
def _shipped() -> Mapping[str, Any]:
    document = yaml.safe_load((SHIPPED_DIR / "suites.yaml").read_text(encoding="utf-8"))
    assert isinstance(document, dict), document
    return document


def reversal_prompts(relation: str) -> tuple[str, ...]:
    """Prompts about an object, ``{subject}`` in them, that a subject answers.

    Raises DataError for a relation that has none.
    """
    known = _shipped()["reversal"]
    if relation not in known:
        raise DataError(
            f"evaluation.reversal_facts: relation {relation!r} has no reversed prompts, only: "
            f"{', '.join(known)}; set it to 0 or use those relations"
        )
    return tuple(known[relation])


def stand_in_prompts(
    name: str, train_prompts: Sequence[str] = (), test_prompts: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Train and test prompts of a stand-in relation: those given, else the shipped one's.

    Raises DataError for a name that is not shipped, and prompts without ``{subject}``.
    """
    if not train_prompts:
        known = _shipped()["stand_in"]
        if name not in known:
            raise DataError(
                f"stand_in {name!r} is not shipped; name one of: {', '.join(known)}, or give "
                "train_prompts and test_prompts"
            )
        return tuple(known[name]["train_prompts"]), tuple(known[name]["test_prompts"])
    for prompt in (*train_prompts, *test_prompts):
        if prompt.count(SUBJECT_FIELD) != 1:
            raise DataError(
                f"stand_in {name!r}, prompt {prompt!r} holds {SUBJECT_FIELD} "
                f"{prompt.count(SUBJECT_FIELD)} times; write it exactly once"
            )
    return tuple(train_prompts), tuple(test_prompts)


def chains() -> tuple[Chain, ...]:
    """The chains of two relations that have prompts."""
    return tuple(
        Chain(entry["first"], entry["second"], tuple(entry["prompts"]))
        for entry in _shipped()["two_hop"]
    )


def chained(fact_set: FactSet, chain: Chain) -> list[tuple[int, int]]:
    """Places of facts of the two relations that follow each other, in the order of the first.

    None of generated facts, whose names of people differ from relation to relation.
    """
    if not fact_set.is_held:
        return []
    second = {
        normalise(fact.subject): place
        for place, fact in enumerate(fact_set.facts)
        if fact.relation == chain.second
    }
    return [
        (place, second[normalise(fact.object)])
        for place, fact in enumerate(fact_set.facts)
        if fact.relation == chain.first and normalise(fact.object) in second
    ]
