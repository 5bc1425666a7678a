"""Suites ask what they say."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rotescale.data.examples import phase_examples
from rotescale.errors import DataError
from rotescale.evaluation.items import Item
from rotescale.evaluation.metrics import outcome_of, summarise
from rotescale.evaluation.suites import PIECE_TOKENS, TEXTS, Suites, check_suites
from rotescale.facts import FactSet, Relation, Wording, load_shipped, normalise
from rotescale.facts.prompts import shipped_relations
from rotescale.facts.suites import chained, chains, reversal_prompts, stand_in_prompts
from rotescale.spec import EvaluationSpec, PhaseSpec

SPEC = EvaluationSpec(
    in_context=(1, 5),
    in_context_facts=8,
    reversal_facts=7,
    two_hop_facts=20,
    text_pieces=3,
)
FACTS = load_shipped(["mother"], chains=True)
TRAINED = frozenset(range(0, 200, 2))


class Characters:
    """A tokenizer with a token for each character."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}


def suites(spec: EvaluationSpec = SPEC, fact_set: FactSet = FACTS) -> Suites:
    wording = Wording.placeholder(relation.name for relation in fact_set.relations)
    return Suites(fact_set, TRAINED, None, wording, spec, 0)


def of_suite(name: str, *, spec: EvaluationSpec = SPEC) -> list[Item]:
    return [item for item in suites(spec).items() if item.suite == name]


def test_chains_go_on_from_every_mother() -> None:
    [chain] = chains()
    pairs = chained(FACTS, chain)
    assert len(pairs) == 100
    for place, second in pairs:
        assert FACTS.facts[place].object == FACTS.facts[second].subject
    names = [fact.object for fact in FACTS.of("educated_at")]
    others = load_shipped().facts
    taken = {normalise(name) for fact in others for name in (fact.subject, fact.object)}
    assert len(set(names)) == 100
    assert not taken & {normalise(name) for name in names}


def test_the_context_states_n_facts_and_among_them_the_one_asked_about() -> None:
    for number in (1, 5):
        items = of_suite(f"in_context_{number}")
        assert Counter((item.relation, item.split, item.prompts) for item in items) == {
            (relation, split, kind): 8
            for relation in ("mother", "educated_at")
            for split in ("trained", "held_out")
            for kind in ("train", "test")
        }
        for item in items:
            *context, question = item.text.split("\n")
            fact = FACTS.facts[item.fact]
            assert len(context) == len(set(context)) == number
            prompt = shipped_relations()[item.relation].train_prompts[0]
            assert f"{Relation.fill(prompt, fact.subject)} {fact.object}." in context
            assert fact.subject in question
            assert fact.object not in question
            assert (item.fact in TRAINED) == (item.split == "trained")


def test_the_context_may_be_in_the_words_of_the_first_phase() -> None:
    for item in of_suite(
        "in_context_1", spec=SPEC.model_copy(update={"in_context_words": "key_token"})
    ):
        fact = FACTS.facts[item.fact]
        assert item.text.startswith(f"{fact.subject} [X] {fact.object}.\n")


@pytest.mark.parametrize("words", ["prompt", "key_token"])
def test_a_context_stands_inside_the_turn_and_behind_what_texts_begin_with(words: str) -> None:
    plain = of_suite("in_context_5", spec=SPEC.model_copy(update={"in_context_words": words}))
    for framed, before, after in (
        ({"chat": "<user>{prompt}</user><answer>"}, "<user>", "</user><answer>"),
        ({"prefix": "Facts: "}, "Facts: ", ""),
    ):
        made = suites(SPEC.model_copy(update={"in_context_words": words}))
        made = replace(made, wording=replace(made.wording, **framed))
        items = [item for item in made.items() if item.suite == "in_context_5"]
        assert [item.text for item in items] == [f"{before}{one.text}{after}" for one in plain]


def test_two_hops_are_asked_where_both_facts_were_memorized() -> None:
    [chain] = chains()
    pairs = chained(FACTS, chain)
    both = {place for pair in pairs[:3] for place in pair}
    alone = {first for first, _ in pairs[3:]}
    spec = SPEC.model_copy(update={"in_context": ()})
    made = replace(suites(spec), asked=both | alone)
    asked = {item.fact for item in made.items() if item.suite == "two_hop"}
    assert asked == {first for first, _ in pairs[:3]}


def test_contexts_are_shared_by_as_many_facts_as_they_hold() -> None:
    for number, shared in ((1, 1), (5, 5)):
        asked: dict[str, set[int]] = {}
        for item in of_suite(f"in_context_{number}"):
            asked.setdefault(item.text.rpartition("\n")[0], set()).add(item.fact)
        sizes = Counter(len(facts) for facts in asked.values())
        # Sixteen facts of each relation are asked about.
        assert sizes == ({1: 32} if shared == 1 else {5: 6, 1: 2})


def test_reversal_asks_for_the_subject_with_prompts_of_the_other_direction() -> None:
    items = of_suite("reversal")
    assert len(items) == 2 * 2 * 7 * 3
    for item in items:
        fact = FACTS.facts[item.fact]
        prompt = reversal_prompts(item.relation)[item.prompt_index]
        assert item.text == prompt.replace("{subject}", fact.object)
        assert item.options[item.gold] == fact.subject
        assert len(set(item.options)) == 100


def test_every_shipped_relation_has_reversed_prompts_of_its_own() -> None:
    for name, relation in shipped_relations().items():
        prompts = reversal_prompts(name)
        assert len(set(prompts)) == 3
        assert all(prompt.count("{subject}") == 1 for prompt in prompts)
        known = {*relation.train_prompts, *relation.test_prompts, *relation.unrelated_prompts}
        assert not known & set(prompts)


def test_two_hops_ask_for_what_the_second_fact_says() -> None:
    items = of_suite("two_hop")
    assert len(items) == 20 * 3
    universities = {fact.subject: fact.object for fact in FACTS.of("educated_at")}
    for item in items:
        fact = FACTS.facts[item.fact]
        assert fact.relation == item.relation == "mother"
        assert fact.subject in item.text
        assert fact.object not in item.text
        assert item.options[item.gold] == universities[fact.object]


def test_repurposed_facts_are_asked_with_the_stand_ins_prompts() -> None:
    phase = PhaseSpec.model_validate(
        {
            "name": "repurpose",
            "text": "prompts",
            "stand_in": {"name": "landlord"},
            "facts_per_relation": 10,
            "epochs": 1,
            "global_batch": 4,
            "learning_rate": 1e-4,
        }
    )
    spec = EvaluationSpec(trained_facts=4, held_out_facts=6, train_prompts=1, test_prompts=2)
    wording = Wording.placeholder(["mother"])
    facts = load_shipped(["mother"])
    items = Suites(facts, frozenset(), None, wording, spec, 0, (phase,)).items()
    told = {example.fact for example in phase_examples(facts, phase, wording=wording, seed=0)}
    assert len(told) == 10
    assert Counter((item.suite, item.split, item.prompts) for item in items) == {
        ("repurposed", "trained", "train"): 4,
        ("repurposed", "trained", "test"): 8,
        ("repurposed", "held_out", "train"): 6,
        ("repurposed", "held_out", "test"): 12,
    }
    train, test = stand_in_prompts("landlord")
    for item in items:
        fact = facts.facts[item.fact]
        prompt = (train if item.prompts == "train" else test)[item.prompt_index]
        assert item.text == prompt.replace("{subject}", fact.subject)
        assert item.options[item.gold] == fact.object
        assert (item.fact in told) == (item.split == "trained")


def test_stand_ins_are_worded_unlike_the_relations() -> None:
    own = {
        prompt
        for relation in shipped_relations().values()
        for prompt in (*relation.train_prompts, *relation.test_prompts)
    }
    for name in ("landlord", "publisher"):
        train, test = stand_in_prompts(name)
        assert len({*train, *test}) == 10
        assert not own & {*train, *test}
        assert all(prompt.count("{subject}") == 1 for prompt in (*train, *test))
    with pytest.raises(DataError, match="stand_in 'tenant' is not shipped; name one of: landlord"):
        stand_in_prompts("tenant")
    with pytest.raises(DataError, match=r"prompt .Who\?. holds {subject} 0 times"):
        stand_in_prompts("tenant", ["Who?"], ["Whose is {subject}?"])


def test_texts_are_scored_as_they_are() -> None:
    items = suites().texts(Characters())
    assert Counter(item.relation for item in items) == dict.fromkeys(TEXTS, 3)
    assert len({item.fact for item in items}) == len(items)
    assert {len(item.tokens) for item in items} == {PIECE_TOKENS}
    for name, path in TEXTS.items():
        first = next(item for item in items if item.relation == name)
        assert path.read_text().startswith("".join(map(chr, first.tokens)))


def test_nothing_is_asked_where_the_spec_asks_for_nothing() -> None:
    quiet = suites(EvaluationSpec())
    assert quiet.items() == quiet.texts(Characters()) == ()


def test_a_uniform_model_loses_the_logarithm_of_its_vocabulary() -> None:
    items = suites().texts(Characters())
    outcomes = [
        outcome_of(
            item,
            log_probabilities=np.array([-(PIECE_TOKENS - 1) * math.log(50)]),
            num_option_tokens=np.array([PIECE_TOKENS - 1]),
            generated=None,
        )
        for item in items
    ]
    rows = summarise(outcomes, stage="base", epoch=None, seed=0, bootstrap_samples=99)
    assert {(row.relation, row.metric) for row in rows} == {
        (name, "text_loss") for name in (*TEXTS, "all")
    }
    for row in rows:
        assert row.value == pytest.approx(math.log(50))
        assert row.suite == "capability"


@pytest.mark.parametrize(
    ("spec", "fact_set", "told"),
    [
        (
            SPEC.model_copy(update={"in_context": (101,)}),
            FACTS,
            "evaluation.in_context: 101 facts asked for, but relation 'mother' has 100",
        ),
        (SPEC, load_shipped(["mother"]), "evaluation.two_hop_facts: these facts hold no chain of"),
        (
            SPEC,
            replace(
                FACTS,
                relations=(replace(FACTS.relations[0], name="aunt"),),
                facts=tuple(replace(f, relation="aunt") for f in FACTS.of("mother")),
            ),
            "evaluation.reversal_facts: relation 'aunt' has no reversed prompts, only: author",
        ),
    ],
)
def test_a_suite_without_data_is_refused(
    spec: EvaluationSpec, fact_set: FactSet, told: str
) -> None:
    with pytest.raises(DataError) as refusal:
        check_suites(fact_set, spec)
    assert told in str(refusal.value)
