"""Generated facts: deterministic, distinct, lazy, and never a shipped name."""

from __future__ import annotations

import re
import sys
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest

from rotescale.errors import DataError
from rotescale.facts import (
    HELD_FACTS,
    combine,
    generate,
    iter_pairs,
    load_shipped,
    normalise,
    shipped_relations,
)
from rotescale.facts.check import validate
from rotescale.facts.generate import GeneratedPart, _permutation
from rotescale.facts.saved import load_saved, save_fact_set
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


def test_ten_million_facts_are_not_held() -> None:
    tracemalloc.start()
    facts = combine(generate(name, num_facts=10_000_000, seed=3) for name in ("mother", "author"))
    assert (len(facts.facts), facts.is_held) == (20_000_000, False)
    assert facts.places("author") == range(10_000_000, 20_000_000)
    assert facts.pair(5) == next(islice(iter_pairs("mother", num_facts=6, seed=3), 5, None))
    for place in (0, 9_999_999, 10_000_000, -1):
        fact = facts.facts[place]
        assert (fact.subject, fact.object) == facts.pair(place)
        assert fact.relation == ("author" if place in (10_000_000, -1) else "mother")
        assert len({fact.object, *fact.distractors}) == 100
    with pytest.raises(IndexError):
        facts.facts[20_000_000]
    author = facts.only(["author"])
    assert [relation.name for relation in author.relations] == ["author"]
    assert author.facts[0] == facts.of("author")[0] == facts.facts[10_000_000]
    assert author.facts[2:4] == facts.facts[10_000_002:10_000_004]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_facts_that_are_not_held_are_those_that_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    held = generate("mother", num_facts=300, seed=1)
    monkeypatch.setattr(sys.modules[GeneratedPart.__module__], "HELD_FACTS", 299)
    lazy = generate("mother", num_facts=300, seed=1)
    assert held.is_held
    assert not lazy.is_held
    assert tuple(lazy.facts) == held.facts


def test_generated_facts_stay_as_they_are() -> None:
    """A run may keep only what makes its facts: other ones take another version of the maker."""
    facts = generate("mother", num_facts=120, seed=1)
    assert facts.digest()[:16] == "0c2cf2444e984aba"
    author = generate("author", num_facts=HELD_FACTS + 1, seed=1).facts[-1]
    named = (author.subject, author.object, author.distractors[0])
    assert named == ("The Ancient Witness of Stulkinoth", "Dean Holvoroth", "Tim Histomont")


def test_facts_that_are_not_held_are_saved_as_what_makes_them(tmp_path: Path) -> None:
    facts = generate("mother", num_facts=HELD_FACTS + 1, seed=3)
    save_fact_set(facts, tmp_path / "facts.json")
    assert (tmp_path / "facts.json").stat().st_size < 20_000
    assert load_saved(tmp_path / "facts.json") == facts
    digests = {
        generate("mother", num_facts=number, seed=seed).digest()
        for number, seed in ((HELD_FACTS + 1, 3), (HELD_FACTS + 2, 3), (HELD_FACTS + 1, 4))
    }
    assert len(digests) == 3
    assert facts.digest() in digests
    text = (tmp_path / "facts.json").read_text()
    (tmp_path / "facts.json").write_text(text.replace('"generator": 1', '"generator": 0'))
    with pytest.raises(DataError, match="of version 0, this is version 1: it would make others"):
        load_saved(tmp_path / "facts.json")
