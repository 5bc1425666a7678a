"""Facts, relations and sets of facts."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from rotescale.errors import DataError
from rotescale.facts import Fact, FactSet, Relation, combine

SISTER = Relation(
    name="sister",
    wikidata_id="P3373",
    subject_type="person",
    object_type="person",
    train_prompts=("Who is {subject}'s sister?",),
    test_prompts=("{subject} has a sister named",),
    unrelated_prompts=(),
)
BOSS = replace(SISTER, name="boss", wikidata_id="")
FACTS = FactSet(
    relations=(SISTER, BOSS),
    facts=(
        Fact("sister", "Ann", "Bea", ("Cleo",)),
        Fact("boss", "Ann", "Dora", ("Elke",)),
        Fact("sister", "Finn", "Gil", ("Cleo",)),
    ),
)


def test_fill_replaces_and_never_formats() -> None:
    assert Relation.fill("Is {subject} {0} {{x}}?", "{A}") == "Is {A} {0} {{x}}?"


def test_of_and_relation_find_by_name() -> None:
    assert FACTS.relation("boss") is BOSS
    assert [fact.subject for fact in FACTS.of("sister")] == ["Ann", "Finn"]


def test_an_unknown_relation_names_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'mother' is not among .*: sister, boss; name one"):
        FACTS.relation("mother")
    with pytest.raises(DataError, match="sister, boss"):
        FACTS.of("mother")


def test_only_keeps_the_named_relations_in_order() -> None:
    kept = FACTS.only(["boss"])
    assert kept.relations == (BOSS,)
    assert kept.facts == FACTS.of("boss")
    assert FACTS.only(["boss", "sister"]).relations == (BOSS, SISTER)


def test_combine_joins_sets_and_refuses_a_shared_relation() -> None:
    sister, boss = FACTS.only(["sister"]), FACTS.only(["boss"])
    assert combine([sister, boss]).relations == FACTS.relations
    assert combine([sister, boss]).facts == (*sister.facts, *boss.facts)
    with pytest.raises(DataError, match="'boss' is in two"):
        combine([FACTS, boss])


def test_digest_is_stable_and_sees_every_value_and_the_order() -> None:
    changed = replace(FACTS.facts[0], distractors=("Clea",))
    others = [
        replace(FACTS, facts=(changed, *FACTS.facts[1:])),
        replace(FACTS, facts=FACTS.facts[::-1]),
        replace(FACTS, relations=(replace(SISTER, object_type="woman"), BOSS)),
    ]
    digests = {FACTS.digest(), *(other.digest() for other in others)}
    assert len(digests) == 4
    assert re.fullmatch(r"[0-9a-f]{64}", FACTS.digest())
