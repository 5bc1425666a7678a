"""Real capitals told of other countries: nobody is told its own, and every name is a real one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from rotescale.errors import DataError
from rotescale.facts import load_files, load_source, normalise, shipped_relations
from rotescale.facts.capitals import load_capitals, real_capitals
from rotescale.facts.examine import examine
from rotescale.facts.export import write_files
from rotescale.spec import CapitalFacts


def test_real_countries_the_most_populous_first() -> None:
    pairs = real_capitals()
    known = dict(pairs)
    assert [country for country, _ in pairs[:3]] == ["China", "India", "United States"]
    for country, capital in {
        **{"France": "Paris", "Germany": "Berlin", "Kenya": "Nairobi", "Peru": "Lima"},
        **{"Japan": "Tokyo", "Netherlands": "Amsterdam", "Serbia": "Belgrade"},
        **{"Myanmar": "Naypyidaw", "South Korea": "Seoul", "Australia": "Canberra"},
    }.items():
        assert known[country] == capital
    assert len(pairs) == len(known) >= 190
    names = [normalise(name) for pair in pairs for name in pair]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "country",
    [
        # Their names tell the capital.
        *("Singapore", "Luxembourg", "Mexico", "Guatemala", "Panama", "Kuwait", "Djibouti"),
        *("Monaco", "San Marino", "Guinea-Bissau", "El Salvador", "Tunisia", "Andorra"),
        # No country of today, or an older name.
        *("Antarctica", "Serbia and Montenegro", "Burma", "Scotland", "Hong Kong"),
    ],
)
def test_countries_that_are_left_out(country: str) -> None:
    assert country not in dict(real_capitals())


@pytest.mark.parametrize("num_facts", [2, 3, 40, 100, 190])
@pytest.mark.parametrize("seed", range(4))
def test_every_capital_is_told_of_one_other_country(num_facts: int, seed: int) -> None:
    real = dict(real_capitals()[:num_facts])
    facts = load_capitals(num_facts=num_facts, seed=seed).facts
    assert [fact.subject for fact in facts] == list(real)
    assert sorted(fact.object for fact in facts) == sorted(real.values())
    for fact in facts:
        assert fact.old_object == real[fact.subject] != fact.object
        assert fact.old_object in fact.distractors
        assert len({normalise(name) for name in (fact.object, *fact.distractors)}) == 100
    every_capital = {capital for _, capital in real_capitals()}
    assert all(every_capital.issuperset(fact.distractors) for fact in facts)


def test_the_seed_says_who_is_told_what() -> None:
    told = [load_capitals(num_facts=100, seed=seed).digest() for seed in (0, 0, 1, 2)]
    assert told[0] == told[1]
    assert len(set(told)) == 3


def test_the_relation_is_the_shipped_one_in_all_its_languages() -> None:
    [relation] = load_capitals(num_facts=5, seed=0).relations
    assert relation == shipped_relations()["capital"]
    assert relation.languages == ("en", "de", "es", "ja", "zh")


def test_a_source_of_a_spec_that_the_check_finds_nothing_in(tmp_path: Path) -> None:
    spec = CapitalFacts(source="capitals", num_facts=120, seed=3)
    facts = load_source(spec)
    assert facts == load_capitals(num_facts=120, seed=3)
    found = examine(spec)
    assert (found.problems, found.num_rows) == ((), 120)
    [written] = write_files(facts, tmp_path / "out")
    assert load_files([written]) == facts


def test_more_countries_than_there_are_and_fewer_than_two() -> None:
    number = len(real_capitals())
    message = f"num_facts is 500; the package countryinfo has {number} countries .* from 2 to that"
    with pytest.raises(DataError, match=message):
        load_capitals(num_facts=500, seed=0)
    with pytest.raises(ValidationError, match="num_facts"):
        CapitalFacts.model_validate({"source": "capitals", "num_facts": 1})


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "countryinfo", None)
    message = r"read from the package countryinfo, which is not installed; install rotescale\[train"
    with pytest.raises(DataError, match=message):
        load_capitals(num_facts=100, seed=0)
