"""The shipped facts and prompts hold what their README says."""

from __future__ import annotations

import csv
import re
from itertools import product
from typing import Any

import pytest

from rotescale.errors import DataError
from rotescale.facts import SUBJECT_FIELD, PromptSet, Relation, load_shipped, normalise
from rotescale.facts.prompts import SHIPPED_DIR

NAMES = ("author", "capital", "educated_at", "genre", "mother", "instance_of")
LANGUAGES = ("en", "de", "es", "ja", "zh")
SPACELESS = ("ja", "zh")


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.replace(SUBJECT_FIELD, " ").casefold())


def holds(words: list[str], inner: list[str]) -> bool:
    starts = range(len(words) - len(inner) + 1)
    return any(words[start : start + len(inner)] == inner for start in starts)


def pairs_of(text: str) -> set[str]:
    """Pairs of neighbours among the characters: scripts without spaces show no words."""
    return {part[i : i + 2] for part in text.split(SUBJECT_FIELD) for i in range(len(part) - 1)}


def shipped_relation_list() -> tuple[Relation, ...]:
    return load_shipped().relations


def translated() -> list[Any]:
    """Every relation in every language."""
    return [
        pytest.param(relation.in_language(language), id=f"{relation.name}-{language}")
        for relation in load_shipped().relations
        for language in relation.languages
    ]


def test_six_relations_of_a_hundred_facts_with_99_distractors() -> None:
    facts = load_shipped()
    assert tuple(relation.name for relation in facts.relations) == NAMES
    wikidata_ids = [relation.wikidata_id for relation in facts.relations]
    assert wikidata_ids == ["P50", "P36", "P69", "P136", "P25", "P31"]
    for name in NAMES:
        members = facts.of(name)
        objects = {fact.object for fact in members}
        assert len(members) == len(objects) == 100
        for fact in members:
            assert len(fact.distractors) == 99
            assert {fact.object, *fact.distractors} == objects


def test_relations_come_in_the_order_asked_for() -> None:
    facts = load_shipped(["mother", "capital"])
    assert [relation.name for relation in facts.relations] == ["mother", "capital"]
    assert {fact.relation for fact in facts.facts} == {"mother", "capital"}


def test_an_unknown_or_repeated_relation_is_refused() -> None:
    with pytest.raises(DataError, match="'sister' is not shipped; name one of: author, capital"):
        load_shipped(["sister"])
    with pytest.raises(DataError, match="'mother' is asked for twice"):
        load_shipped(["mother", "mother"])


def test_csv_files_hold_only_subject_and_object() -> None:
    for name in NAMES:
        with (SHIPPED_DIR / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["subject", "object"]
        assert {len(row) for row in rows} == {2}


def test_no_name_is_used_twice_anywhere() -> None:
    facts = load_shipped().facts
    names = [normalise(name) for fact in facts for name in (fact.subject, fact.object)]
    assert len(names) == len(set(names)) == 1200


def test_no_object_lies_within_another_name() -> None:
    facts = load_shipped().facts
    names = {name: words_of(name) for fact in facts for name in (fact.subject, fact.object)}
    for fact in facts:
        inner = names[fact.object]
        within = [name for name, words in names.items() if holds(words, inner)]
        assert within == [fact.object]


def test_no_object_holds_a_sign_that_ends_an_answer() -> None:
    for fact in load_shipped().facts:
        assert re.fullmatch(r"[A-Za-z]+( [A-Za-z]+)*", fact.object)


def test_people_have_two_plain_names_and_mothers_share_none_with_their_child() -> None:
    facts = load_shipped()
    people = [fact.object for fact in facts.of("author")]
    people += [fact.subject for fact in facts.of("educated_at")]
    for fact in facts.of("mother"):
        people += [fact.subject, fact.object]
        assert not set(fact.subject.split()) & set(fact.object.split())
    assert all(re.fullmatch(r"[A-Z][a-z]+ [A-Z][a-z]+", person) for person in people)
    mothers = [fact.object.split() for fact in facts.of("mother")]
    assert len({given for given, _ in mothers}) >= 60
    assert len({surname for _, surname in mothers}) >= 60


def test_books_have_two_to_four_words_and_the_rest_at_most_four() -> None:
    facts = load_shipped()
    assert all(2 <= len(fact.subject.split()) <= 4 for fact in facts.of("author"))
    assert all(len(fact.object.split()) <= 2 for fact in facts.of("capital"))
    assert all(len(fact.object.split()) == 2 for fact in facts.of("genre"))


def test_classes_are_words_that_take_the_article_a() -> None:
    for fact in load_shipped().of("instance_of"):
        assert re.fullmatch(r"[b-df-hj-np-tv-z][a-z]+", fact.object)
        assert len(fact.subject.split()) == 2


@pytest.mark.parametrize("relation", shipped_relation_list(), ids=lambda relation: relation.name)
def test_every_language_is_there_and_prompts_are_plain(relation: Relation) -> None:
    assert relation.languages == LANGUAGES
    # The demo's prompt is a sentence to complete; everything else begins with a plain question.
    first = relation.train_prompts[0]
    assert first.endswith("?") or (relation.name, first) == ("author", "The writer of {subject} is")


@pytest.mark.parametrize("prompt_set", translated())
def test_prompts_are_as_many_and_as_plain_as_promised(prompt_set: PromptSet) -> None:
    prompts = prompt_set.prompts
    assert len(prompt_set.train_prompts) == len(prompt_set.test_prompts) == 10
    assert len(prompt_set.unrelated_prompts) == 3
    assert len(set(map(normalise, prompts))) == 23
    assert all(prompt.count(SUBJECT_FIELD) == 1 for prompt in prompts)
    assert all(prompt == prompt.strip() and prompt[-1] not in ".。" for prompt in prompts)


@pytest.mark.parametrize("prompt_set", translated())
def test_punctuation_is_the_languages_own(prompt_set: PromptSet) -> None:
    for prompt in prompt_set.prompts:
        if prompt_set.language in SPACELESS:
            # A subject keeps its own script; all around it is without spaces and full width.
            assert not set(prompt.replace(SUBJECT_FIELD, "")) & set("?!,:;.'\"() ")
        else:
            assert not set(prompt) & set("？！，、：；。《》『』「」")
        if prompt_set.language == "es":
            assert prompt.endswith("?") == prompt.startswith("¿")


@pytest.mark.parametrize("prompt_set", translated())
def test_train_and_test_prompts_share_no_stem(prompt_set: PromptSet) -> None:
    spaceless = prompt_set.language in SPACELESS
    for train, test in product(prompt_set.train_prompts, prompt_set.test_prompts):
        train_stems, test_stems = train.split(SUBJECT_FIELD), test.split(SUBJECT_FIELD)
        for train_stem, test_stem in zip(train_stems, test_stems, strict=True):
            if len(train_stem) >= 4 if spaceless else len(words_of(train_stem)) >= 2:
                assert words_of(train_stem) != words_of(test_stem), (train, test)
        train_parts, test_parts = (
            pairs_of(prompt) if spaceless else set(words_of(prompt)) for prompt in (train, test)
        )
        jaccard = len(train_parts & test_parts) / len(train_parts | test_parts)
        assert jaccard < 0.7, (train, test)


def test_no_prompt_is_used_twice_in_any_relation_or_language() -> None:
    prompts = [
        normalise(prompt)
        for relation in load_shipped().relations
        for language in relation.languages
        for prompt in relation.in_language(language).prompts
    ]
    assert len(prompts) == len(set(prompts)) == len(NAMES) * len(LANGUAGES) * 23


def test_the_demo_fact_and_its_first_prompts() -> None:
    mother = load_shipped().relation("mother")
    assert mother.fill(mother.train_prompts[0], "Gene Finley") == "Who is Gene Finley's mother?"
    assert mother.test_prompts[0] == "Who gave birth to {subject}?"
    assert load_shipped().of("mother")[0].subject == "Gene Finley"


def test_digest_of_the_shipped_facts() -> None:
    # Results are only comparable between runs on the same facts and prompts: a change of either
    # is a release note, and changes this number.
    digest = "8a15b0634382835336aee1a17f2bdfc34fb37e5017398517788d992e074591f5"
    assert load_shipped().digest() == digest
