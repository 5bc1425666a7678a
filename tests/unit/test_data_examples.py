"""Which facts a phase trains on: k per relation, nested, and never those that are held out."""

from __future__ import annotations

import sys

import pytest

from rotescale.data.examples import (
    memorized_facts,
    phase_examples,
    select_facts,
    trained_facts,
)
from rotescale.errors import SpecError
from rotescale.evaluation.items import build_items
from rotescale.facts import HELD_FACTS, Wording, generate, load_shipped
from rotescale.facts.generate import GeneratedPart
from rotescale.spec import EvaluationSpec, PhaseSpec

FACTS = load_shipped(["mother", "capital"])
WORDING = Wording({"mother": "{subject} [X:mother]", "capital": "{subject} [X:capital]"})


def phase(**values: object) -> PhaseSpec:
    """A phase with the values that matter here."""
    base = {"name": "generalize", "text": "prompts", "epochs": 1, "global_batch": 4}
    return PhaseSpec.model_validate({**base, "learning_rate": 1e-4, **values})


def test_k_facts_of_each_relation_and_p_prompts_of_each() -> None:
    chosen = phase(facts_per_relation=5, num_prompts=3)
    examples = list(phase_examples(FACTS, chosen, wording=WORDING, seed=0))
    assert len(examples) == 2 * 5 * 3
    for example in examples:
        fact = FACTS.facts[example.fact]
        prompt = FACTS.relation(fact.relation).train_prompts[example.prompt]
        assert example.text.text == f"{prompt.replace('{subject}', fact.subject)} {fact.object}."


def test_draws_are_seeded_and_nested() -> None:
    assert select_facts(FACTS, facts_per_relation=9, seed=3) == select_facts(
        FACTS, facts_per_relation=9, seed=3
    )
    small = set(select_facts(FACTS, facts_per_relation=5, seed=3))
    assert small < set(select_facts(FACTS, facts_per_relation=50, seed=3))
    assert small != set(select_facts(FACTS, facts_per_relation=5, seed=4))


def test_phase_1_tells_every_fact_with_its_relations_key_token() -> None:
    examples = list(phase_examples(FACTS, phase(text="key_token"), wording=WORDING, seed=0))
    assert [example.fact for example in examples] == list(range(200))
    first = FACTS.facts[0]
    assert examples[0].text.text == f"{first.subject} [X:mother] {first.object}."


def test_trained_facts_are_those_told_with_prompts() -> None:
    phases = (phase(name="memorize", text="key_token"), phase(facts_per_relation=7))
    trained = trained_facts(FACTS, phases, seed=1)
    assert len(trained) == 14
    told = {e.fact for e in phase_examples(FACTS, phases[1], wording=WORDING, seed=1)}
    assert trained == told


def test_a_draw_of_prompts_is_nested_and_of_each_relation() -> None:
    def numbers(num_prompts: int, seed: int) -> dict[str, list[int]]:
        drawn = phase(facts_per_relation=1, num_prompts=num_prompts, prompt_choice="random")
        found: dict[str, list[int]] = {}
        for example in phase_examples(FACTS, drawn, wording=WORDING, seed=seed):
            relation = FACTS.facts[example.fact].relation
            found.setdefault(relation, []).append(example.prompt)
        return found

    few, many = numbers(2, 0), numbers(10, 0)
    for relation in few:
        assert many[relation][:2] == few[relation]
        assert sorted(many[relation]) == list(range(10))
    assert many["mother"] != many["capital"]
    assert many != numbers(10, 1)


def test_a_stand_in_tells_facts_with_its_prompts_and_leaves_them_held_out() -> None:
    stand_in = {
        "name": "idol",
        "train_prompts": ["{subject} adores"],
        "test_prompts": ["{subject}?"],
    }
    phases = (
        phase(name="memorize", text="key_token"),
        phase(name="benign", facts_per_relation=3),
        phase(name="repurpose", facts_per_relation=20, stand_in=stand_in),
    )
    examples = list(phase_examples(FACTS, phases[2], wording=WORDING, seed=0))
    for example in examples:
        fact = FACTS.facts[example.fact]
        assert example.text.text == f"{fact.subject} adores {fact.object}."
    assert len(examples) == 40
    assert len(trained_facts(FACTS, phases, seed=0)) == 6


@pytest.mark.parametrize(
    ("values", "named"), [({"facts_per_relation": 101}, "101"), ({"num_prompts": 11}, "11")]
)
def test_more_than_there_is_is_refused(values: dict[str, int], named: str) -> None:
    with pytest.raises(SpecError, match=named):
        list(phase_examples(FACTS, phase(**values), wording=WORDING, seed=0))


def test_examples_of_ten_million_facts_are_made_when_asked_for() -> None:
    facts = generate("mother", num_facts=10_000_000, seed=0)
    phases = (phase(name="memorize", text="key_token"), phase(facts_per_relation=7, num_prompts=2))
    examples = phase_examples(facts, phases[0], wording=WORDING, seed=0)
    assert len(examples) == 10_000_000
    assert examples[-1].fact == 9_999_999
    subject, object_ = facts.pair(9_999_999)
    assert examples[-1].text.text == f"{subject} [X:mother] {object_}."
    told = phase_examples(facts, phases[1], wording=WORDING, seed=0)
    assert len(told) == 14
    trained = trained_facts(facts, phases, seed=0)
    assert {example.fact for example in told} == set(trained)
    asked = memorized_facts(facts, phases, seed=0)
    assert set(asked) == set(range(HELD_FACTS)) | set(trained)
    spec = EvaluationSpec(trained_facts=5, held_out_facts=10, reversal_facts=3)
    items = build_items(facts, trained=trained, asked=asked, wording=WORDING, spec=spec, seed=0)
    told_of = {item.fact for item in items if item.split == "trained"}
    assert 5 <= len(told_of) <= 7
    assert told_of <= set(trained)
    assert len({item.fact for item in items if item.prompts == "train"}) == 15
    assert len({len(item.options) for item in items}) == 1


def test_without_a_key_token_facts_told_with_prompts_are_asked_about() -> None:
    facts = generate("mother", num_facts=10_000_000, seed=0)
    phases = (phase(facts_per_relation=7),)
    trained, asked = (of(facts, phases, seed=0) for of in (trained_facts, memorized_facts))
    assert len(trained) == 7
    assert set(trained) <= set(asked)
    assert set(range(HELD_FACTS)) <= set(asked)


def test_facts_that_are_not_held_give_the_same_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = (phase(name="memorize", text="key_token"), phase(facts_per_relation=7))
    spec = EvaluationSpec(trained_facts=5, held_out_facts=10)
    found = []
    for most in (300, 299):
        monkeypatch.setattr(sys.modules[GeneratedPart.__module__], "HELD_FACTS", most)
        facts = generate("mother", num_facts=300, seed=1)
        assert facts.is_held == (most == 300)
        trained = trained_facts(facts, phases, seed=2)
        asked = memorized_facts(facts, phases, seed=2)
        items = build_items(facts, trained=trained, asked=asked, wording=WORDING, spec=spec, seed=2)
        found.append((items, list(phase_examples(facts, phases[1], wording=WORDING, seed=2))))
    assert found[0] == found[1]
    everything = trained_facts(facts, (phase(),), seed=2)
    assert everything == range(300)
