"""What ships for questions beyond a relation's own prompts: reversed ones, and two-hop chains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from rotescale.errors import DataError
from rotescale.facts.prompts import SHIPPED_DIR
from rotescale.facts.text import normalise
from rotescale.facts.types import Fact, FactSet


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


def chains() -> tuple[Chain, ...]:
    """The chains of two relations that have prompts."""
    return tuple(
        Chain(entry["first"], entry["second"], tuple(entry["prompts"]))
        for entry in _shipped()["two_hop"]
    )


def chained(fact_set: FactSet, chain: Chain) -> list[tuple[int, Fact]]:
    """The places of the first relation's facts whose object the second relation tells something of.

    With the fact that it tells; in the order of the first.
    """
    second = {
        normalise(fact.subject): fact for fact in fact_set.facts if fact.relation == chain.second
    }
    return [
        (place, second[normalise(fact.object)])
        for place, fact in enumerate(fact_set.facts)
        if fact.relation == chain.first and normalise(fact.object) in second
    ]
