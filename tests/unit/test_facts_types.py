"""Facts, relations and sets of facts."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from rotescale.errors import DataError
from rotescale.facts import Fact, FactSet, PromptSet, Relation, combine, load_shipped

SISTER = Relation(
    name="sister",
    wikidata_id="P3373",
    subject_type="person",
    object_type="person",
    train_prompts=("Who is {subject}'s sister?",),
    test_prompts=("{subject} has a sister named",),
    unrelated_prompts=(),
)
GERMAN = PromptSet(
    "de", ("Wer ist die Schwester von {subject}?",), ("{subject} ist verwandt mit",), ()
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


def test_prompts_come_in_english_and_in_each_translation() -> None:
    relation = replace(SISTER, translations=(GERMAN,))
    assert relation.languages == ("en", "de")
    assert relation.in_language("de") is GERMAN
    english = relation.in_language("en")
    assert english == PromptSet("en", SISTER.train_prompts, SISTER.test_prompts, ())
    assert english.prompts == (*SISTER.train_prompts, *SISTER.test_prompts)


def test_a_language_without_prompts_names_the_relation_and_its_languages() -> None:
    relation = replace(SISTER, translations=(GERMAN,))
    message = "relation 'sister' has no prompts in language 'fr', only in: en, de; name one"
    with pytest.raises(DataError, match=message):
        relation.in_language("fr")


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
        replace(FACTS, relations=(replace(SISTER, translations=(GERMAN,)), BOSS)),
    ]
    digests = {FACTS.digest(), *(other.digest() for other in others)}
    assert len(digests) == 5
    assert re.fullmatch(r"[0-9a-f]{64}", FACTS.digest())


def test_digest_of_facts_without_old_objects_is_what_it_was_before_there_were_any() -> None:
    """Runs that were begun then go on: their resolved.json holds these."""
    assert FACTS.digest() == "d1b694186f9ecddf9e5e06ce9371288efb358232cc999f328ea44a0e22776fc3"
    shipped = "8a15b0634382835336aee1a17f2bdfc34fb37e5017398517788d992e074591f5"
    assert load_shipped().digest() == shipped
    chains = "78ce38a0e85ffd68ea351a6b5488a6fe84d7917e6ddbf5bf731b93432e60f5c9"
    assert load_shipped(["mother"], chains=True).digest() == chains


def test_digest_sees_old_objects() -> None:
    told = [replace(FACTS.facts[0], old_object=name) for name in ("Cleo", "Clea")]
    others = [replace(FACTS, facts=(fact, *FACTS.facts[1:])) for fact in told]
    assert len({FACTS.digest(), *(other.digest() for other in others)}) == 3
