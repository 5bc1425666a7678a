"""Items: the sample, its splits, its options and its controls."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from rotescale.errors import SpecError
from rotescale.evaluation.items import Item, build_items, describe_sample, sample_rows
from rotescale.evaluation.suites import Suites
from rotescale.facts import Fact, FactSet, Wording, load_shipped
from rotescale.spec import EvaluationSpec

KEY_PROMPTS = {"mother": "{subject} [X:mother]", "capital": "{subject} [X:capital]"}
WORDING = Wording(KEY_PROMPTS)
EVERYTHING = EvaluationSpec(
    trained_facts=None,
    held_out_facts=None,
    key_token_facts=None,
    train_prompts=None,
    test_prompts=None,
    unrelated_prompts=None,
    control_facts=None,
    generation_facts=None,
)


@pytest.fixture(scope="module")
def fact_set() -> FactSet:
    return load_shipped(["mother", "capital"])


def trained_of(fact_set: FactSet, count: int = 50) -> frozenset[int]:
    """Every other fact, up to ``count`` of each relation."""
    return frozenset(place for start in (0, 100) for place in range(start, start + 100, 2)[:count])


def items_of(fact_set: FactSet, spec: EvaluationSpec, **options: object) -> tuple[Item, ...]:
    values: dict[str, object] = {"trained": trained_of(fact_set), "seed": 0, **options}
    return build_items(fact_set, wording=WORDING, spec=spec, **values)  # type: ignore[arg-type]


def test_default_sample_has_the_specs_counts(fact_set: FactSet) -> None:
    items = items_of(fact_set, EvaluationSpec())
    counts = Counter((item.relation, item.split, item.prompts) for item in items)
    for relation in KEY_PROMPTS:
        assert counts[relation, "trained", "train"] == 25
        assert counts[relation, "trained", "test"] == 25 * 3
        assert counts[relation, "held_out", "train"] == 50
        assert counts[relation, "held_out", "test"] == 50 * 3
        assert counts[relation, "held_out", "unrelated"] == 50 * 3
        assert counts[relation, "held_out", "wrong_relation"] == 25
        assert counts[relation, "held_out", "reversed"] == 25
        assert counts[relation, "trained", "reversed"] == 25
        both = counts[relation, "trained", "key_token"] + counts[relation, "held_out", "key_token"]
        assert both == 100


def test_generation_takes_the_same_facts_with_one_prompt_of_each_kind(fact_set: FactSet) -> None:
    items = items_of(fact_set, EvaluationSpec(generation_facts=7))
    for split in ("trained", "held_out"):
        facts: dict[str, set[int]] = {}
        for item in items:
            if item.generate and item.split == split and item.relation == "mother":
                assert item.prompt_index == 0
                facts.setdefault(item.prompts, set()).add(item.fact)
        assert all(len(of_kind) == 7 for of_kind in facts.values())
        assert len({frozenset(of_kind) for of_kind in facts.values()}) == 1


def test_trained_and_held_out_are_never_mixed(fact_set: FactSet) -> None:
    trained = trained_of(fact_set)
    for item in items_of(fact_set, EVERYTHING):
        assert (item.split == "trained") == (item.fact in trained)


def test_the_sample_is_a_pure_function_of_its_arguments(fact_set: FactSet) -> None:
    spec = EvaluationSpec()
    first = items_of(fact_set, spec)
    random.seed(1)
    assert items_of(fact_set, spec) == first
    assert items_of(fact_set, spec, trained=sorted(trained_of(fact_set))) == first
    assert items_of(fact_set, spec, seed=1) != first


def test_a_relations_sample_does_not_depend_on_the_other_relations(fact_set: FactSet) -> None:
    alone = load_shipped(["capital"])
    trained = frozenset(place - 100 for place in trained_of(fact_set) if place >= 100)
    spec = EvaluationSpec()
    items = build_items(alone, trained=trained, wording=WORDING, spec=spec, seed=0)
    together = [item for item in items_of(fact_set, spec) if item.relation == "capital"]

    def asked(some: tuple[Item, ...] | list[Item]) -> list[tuple[str, tuple[str, ...]]]:
        return [(i.text, i.options) for i in some if i.prompts != "wrong_relation"]

    assert asked(items) == asked(together)


def test_a_smaller_sample_is_part_of_a_larger_one(fact_set: FactSet) -> None:
    small = items_of(fact_set, EvaluationSpec(held_out_facts=5, generation_facts=0))
    large = items_of(fact_set, EvaluationSpec(held_out_facts=20, generation_facts=0))
    assert set(small) < set(large)


def test_everything_is_asked_where_nothing_is_sampled(fact_set: FactSet) -> None:
    items = items_of(fact_set, EVERYTHING)
    asked = {(item.fact, item.prompts, item.prompt_index) for item in items}
    for place, fact in enumerate(fact_set.facts):
        relation = fact_set.relation(fact.relation)
        assert (place, "key_token", 0) in asked
        for kind in ("train", "test", "unrelated"):
            for index in range(len(getattr(relation, f"{kind}_prompts"))):
                assert (place, kind, index) in asked
        if place not in trained_of(fact_set):
            assert (place, "wrong_relation", 0) in asked
            assert (place, "reversed", 0) in asked
    assert len(asked) == len(items)


def test_texts_and_gold(fact_set: FactSet) -> None:
    for item in items_of(fact_set, EvaluationSpec()):
        fact = fact_set.facts[item.fact]
        relation = fact_set.relation(item.relation)
        gold = item.options[item.gold]
        assert len(set(item.options)) == 100
        assert item.text == item.text.strip()
        match item.prompts:
            case "key_token":
                assert item.text == f"{fact.subject} [X:{item.relation}]"
            case "reversed":
                assert item.text == relation.train_prompts[0].replace("{subject}", fact.object)
                assert gold == fact.subject
                continue
            case "wrong_relation":
                [other] = [one for one in fact_set.relations if one != relation]
                assert item.text == other.train_prompts[0].replace("{subject}", fact.subject)
            case _:
                prompts = getattr(relation, f"{item.prompts}_prompts")
                assert item.text == prompts[item.prompt_index].replace("{subject}", fact.subject)
        assert gold == fact.object
        assert sorted(item.options) == sorted([fact.object, *fact.distractors])


def test_the_golds_place_tells_nothing(fact_set: FactSet) -> None:
    items = items_of(fact_set, EVERYTHING)
    places = [item.gold for item in items if item.prompts == "key_token"]
    assert len(set(places)) > 60
    assert 35 < sum(places) / len(places) < 65


def test_one_relation_borrows_the_wrong_prompt_from_the_shipped_ones() -> None:
    fact_set = load_shipped(["author"])
    items = build_items(
        fact_set, trained=(), wording=Wording.placeholder(["author"]), spec=EvaluationSpec(), seed=0
    )
    own = fact_set.relations[0].train_prompts[0]
    wrong = [item for item in items if item.prompts == "wrong_relation"]
    assert len(wrong) == 25
    for item in wrong:
        assert item.text != own.replace("{subject}", fact_set.facts[item.fact].subject)


def test_reversed_options_hold_one_right_answer_and_at_most_100() -> None:
    shipped = load_shipped(["genre"])
    facts = tuple(Fact("genre", f"Band {i}", f"style {i // 2}", ("wrong",)) for i in range(300))
    fact_set = FactSet(shipped.relations, facts)
    items = build_items(
        fact_set, trained=(), wording=Wording.placeholder(["genre"]), spec=EvaluationSpec(), seed=0
    )
    for item in (item for item in items if item.prompts == "reversed"):
        fact = facts[item.fact]
        right = {other.subject for other in facts if other.object == fact.object}
        assert len(item.options) == 100
        assert right & set(item.options) == {fact.subject}


def test_a_question_without_a_wrong_answer_is_not_asked() -> None:
    """A single option would be chosen, and count as right, whatever the model knows."""
    shipped = load_shipped(["genre"])
    asked = EvaluationSpec(reversal_facts=5)
    for objects in (["swing"], ["swing", "swing", "Swing"]):
        facts = tuple(Fact("genre", f"Band {i}", o, ("jazz",)) for i, o in enumerate(objects))
        fact_set, wording = FactSet(shipped.relations, facts), Wording.placeholder(["genre"])
        items = build_items(fact_set, trained=(), wording=wording, spec=asked, seed=0)
        assert {item.prompts for item in items} >= {"train", "test", "wrong_relation"}
        assert "reversed" not in {item.prompts for item in items}
        suites = Suites(fact_set, frozenset(), frozenset(), wording, asked, 0, ())
        assert [item for item in suites.items() if item.suite == "reversal"] == []


def test_no_key_token_leaves_the_subject_alone(fact_set: FactSet) -> None:
    items = build_items(
        fact_set,
        trained=(),
        wording=Wording({"mother": "{subject}"}),
        spec=EvaluationSpec(),
        seed=0,
    )
    with_key = [item for item in items if item.prompts == "key_token"]
    assert {item.relation for item in with_key} == {"mother"}
    assert with_key[0].text == fact_set.facts[with_key[0].fact].subject


def test_a_chat_frames_meaningful_prompts_and_a_prefix_all_others(fact_set: FactSet) -> None:
    def texts(wording: Wording) -> dict[str, str]:
        items = build_items(
            fact_set.only(["mother"]), trained=(), wording=wording, spec=EvaluationSpec(), seed=0
        )
        return {item.prompts: item.text for item in items}

    keys = {"mother": "[X:mother] {subject}"}
    plain = texts(Wording(keys))
    prefixed = texts(Wording(keys, prefix="<s> "))
    assert prefixed == {kind: f"<s> {text}" for kind, text in plain.items()}
    chat = texts(Wording(keys, prefix="<s> ", chat="<user>{prompt}<assistant>\n"))
    assert chat.pop("key_token") == f"<s> {plain.pop('key_token')}"
    assert chat == {kind: f"<user>{text}<assistant>\n" for kind, text in plain.items()}


def test_description_says_what_is_scored(fact_set: FactSet) -> None:
    items = items_of(fact_set, EvaluationSpec())
    rows = {(row.split, row.prompts): row for row in sample_rows(items)}
    assert rows["held_out", "test"].num_facts == 100
    assert rows["held_out", "test"].num_items == 300
    assert rows["held_out", "test"].num_generated == 50
    assert sum(row.num_items for row in rows.values()) == len(items)
    text = describe_sample(items)
    assert f"{len(items)} questions" in text
    assert "mother, capital" in text
    assert "wrong_relation" in text


def test_other_languages_are_asked_beside_an_unchanged_english_sample(fact_set: FactSet) -> None:
    english = items_of(fact_set, EvaluationSpec())
    items = items_of(fact_set, EvaluationSpec(languages=("en", "de", "ja")))
    assert tuple(item for item in items if item.language == "en") == english
    counts = Counter((item.language, item.prompts) for item in items)
    for kind in ("train", "test", "unrelated"):
        assert counts["de", kind] == counts["ja", kind] == counts["en", kind] > 0
    for kind in ("key_token", "wrong_relation", "reversed"):
        assert counts["de", kind] == counts["ja", kind] == 0 < counts["en", kind]


def test_a_language_asks_the_same_with_its_own_prompts(fact_set: FactSet) -> None:
    items = items_of(fact_set, EvaluationSpec(languages=("zh", "en")))
    asked: dict[str, set[tuple[object, ...]]] = {"zh": set(), "en": set()}
    for item in items:
        if item.prompts not in ("train", "test", "unrelated"):
            continue
        prompts = fact_set.relation(item.relation).in_language(item.language)
        prompt = getattr(prompts, f"{item.prompts}_prompts")[item.prompt_index]
        assert item.text == prompt.replace("{subject}", fact_set.facts[item.fact].subject)
        place = (item.fact, item.prompts, item.prompt_index, item.options, item.generate)
        asked[item.language].add(place)
    assert asked["zh"] == asked["en"]


def test_a_language_that_a_relation_lacks_is_refused(fact_set: FactSet) -> None:
    spec = EvaluationSpec(languages=("en", "fr"))
    message = (
        r"evaluation\.languages: 'fr' asked for, but relation 'mother' has prompts in en, de, "
    )
    with pytest.raises(SpecError, match=message):
        items_of(fact_set, spec)
    mother, capital = fact_set.relations
    poorer = replace(fact_set, relations=(mother, replace(capital, translations=())))
    with pytest.raises(SpecError, match="relation 'capital' has prompts in en only; leave it out"):
        items_of(poorer, EvaluationSpec(languages=("en", "de")))


def test_description_names_several_languages(fact_set: FactSet) -> None:
    assert "languages" not in describe_sample(items_of(fact_set, EvaluationSpec()))
    several = items_of(fact_set, EvaluationSpec(languages=("en", "es")))
    assert "in the languages en, es" in describe_sample(several)
