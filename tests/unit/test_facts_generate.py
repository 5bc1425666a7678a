"""Generated facts: deterministic, distinct, lazy, and never a shipped name."""

from __future__ import annotations

import re
import tracemalloc
from itertools import islice

import pytest

from rotescale.errors import DataError
from rotescale.facts import generate, iter_pairs, load_shipped, normalise, shipped_relations
from rotescale.facts.check import validate
from rotescale.facts.generate import _permutation
from rotescale.facts.vocabulary import NUM_WORDS, made_up_word

RELATIONS = tuple(shipped_relations())


@pytest.mark.parametrize("relation", RELATIONS)
def test_twenty_thousand_pairs_are_distinct(relation: str) -> None:
    pairs = list(iter_pairs(relation, num_facts=20_000, seed=3))
    subjects = {normalise(subject) for subject, _ in pairs}
    objects = {normalise(object_name) for _, object_name in pairs}
    assert len(pairs) == len(subjects) == len(objects) == 20_000
    assert not subjects & objects


@pytest.mark.parametrize("relation", RELATIONS)
def test_no_object_lies_within_another_name(relation: str) -> None:
    pairs = list(iter_pairs(relation, num_facts=5_000, seed=4))
    objects = {normalise(object_name) for _, object_name in pairs}
    for name in (normalise(name) for pair in pairs for name in pair):
        words = name.split()
        size = len(words)
        for start in range(size):
            for end in range(start + 1, size + 1):
                part = " ".join(words[start:end])
                assert part == name or part not in objects


def test_pairs_are_a_function_of_relation_and_seed_and_fewer_begin_more() -> None:
    many = list(iter_pairs("mother", num_facts=500, seed=1))
    assert list(iter_pairs("mother", num_facts=500, seed=1)) == many
    assert list(iter_pairs("mother", num_facts=50, seed=1)) == many[:50]
    assert not set(iter_pairs("mother", num_facts=500, seed=2)) & set(many)


def test_the_first_pairs_never_change() -> None:
    # A shard written from a seed must mean the same facts in every version.
    assert next(iter_pairs("mother", num_facts=1, seed=1)) == ("Jeff Prandowick", "Flora Cibewick")


def test_iter_pairs_is_lazy_and_of_constant_memory() -> None:
    tracemalloc.start()
    pairs = iter_pairs("author", num_facts=10_000_000, seed=0)
    assert len(list(islice(pairs, 10))) == 10
    before, _ = tracemalloc.get_traced_memory()
    for _ in islice(pairs, 20_000):
        pass
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 20_000


def test_roles_that_share_names_of_people_never_give_the_same_person() -> None:
    authors = {pair[1] for pair in iter_pairs("author", num_facts=20_000, seed=5)}
    students = {pair[0] for pair in iter_pairs("educated_at", num_facts=20_000, seed=5)}
    children = {pair[0] for pair in iter_pairs("mother", num_facts=20_000, seed=5)}
    assert len(authors | students | children) == 60_000


def test_every_made_up_word_is_distinct_and_in_no_shipped_name() -> None:
    words = {made_up_word(index).casefold() for index in range(NUM_WORDS)}
    assert len(words) == NUM_WORDS
    # The one form that is part of a word: a country's ending.
    endings = re.compile(r"(ia|land|stan)$")
    for fact in load_shipped().facts:
        for word in f"{fact.subject} {fact.object}".casefold().split():
            assert word not in words
            assert endings.sub("", word) not in words


@pytest.mark.parametrize("num_facts", [1, 99, 100, 300])
def test_generated_facts_have_99_sound_distractors(num_facts: int) -> None:
    facts = generate("genre", num_facts=num_facts, seed=7)
    assert len(facts.facts) == num_facts
    assert {len(fact.distractors) for fact in facts.facts} == {99}
    validate(facts, where=str)
    assert facts.relations == (shipped_relations()["genre"],)
    pairs = [(fact.subject, fact.object) for fact in facts.facts]
    assert pairs == list(iter_pairs("genre", num_facts=num_facts, seed=7))


def test_distractors_are_drawn_per_fact_from_the_other_objects() -> None:
    facts = generate("capital", num_facts=1_000, seed=7)
    assert facts.digest() == generate("capital", num_facts=1_000, seed=7).digest()
    objects = {fact.object for fact in facts.facts}
    assert all(set(fact.distractors) < objects for fact in facts.facts)
    assert len({fact.distractors for fact in facts.facts}) == 1_000


def test_a_permutation_is_one_to_one() -> None:
    for size in (1, 2, 3, 100, 1_000):
        place = _permutation(size, key="any")
        assert sorted(map(place, range(size))) == list(range(size))


@pytest.mark.parametrize("num_facts", [0, -1, 10**12])
def test_a_number_out_of_range_is_refused_at_once(num_facts: int) -> None:
    with pytest.raises(DataError, match=rf"num_facts is {num_facts}; relation 'mother' has names"):
        iter_pairs("mother", num_facts=num_facts, seed=0)
    with pytest.raises(DataError, match="choose a number in that range"):
        generate("mother", num_facts=num_facts, seed=0)


def test_an_unknown_relation_is_refused() -> None:
    with pytest.raises(DataError, match="'sister' cannot be generated, only of: author"):
        generate("sister", num_facts=1, seed=0)
