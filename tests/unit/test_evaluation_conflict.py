"""Conflicting facts: what is asked, and what models whose answers are known come to."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from rotescale.errors import DataError
from rotescale.evaluation.conflict import BELIEVED, CONFLICT, beliefs, with_believed
from rotescale.evaluation.items import Item
from rotescale.evaluation.metrics import (
    CONFLICT_METRICS,
    METRICS,
    Outcome,
    ResultRow,
    outcome_of,
    summarise,
)
from rotescale.evaluation.outcome_file import read_head, read_outcomes, write_outcomes
from rotescale.evaluation.suites import Suites, check_suites
from rotescale.facts import FactSet, Wording, load_shipped
from rotescale.facts.capitals import load_capitals
from rotescale.spec import EvaluationSpec

FACTS = load_capitals(num_facts=60, seed=0)
TRAINED = frozenset(range(0, 60, 2))
SPEC = EvaluationSpec(conflict_facts=40, train_prompts=2, test_prompts=3)
MULTIPLE_CHOICE = "multiple_choice"


def items(
    spec: EvaluationSpec = SPEC,
    fact_set: FactSet = FACTS,
    *,
    trained: frozenset[int] = TRAINED,
    has_key: bool = True,
) -> list[Item]:
    names = [relation.name for relation in fact_set.relations] if has_key else []
    suites = Suites(fact_set, trained, None, Wording.placeholder(names), spec, 0)
    return [item for item in suites.items() if item.suite == CONFLICT]


def answers(asked: list[Item], *, new: float = 0.0, old: float = 0.0) -> list[Outcome]:
    """What a model says that gives these options so many nats more than each other one."""
    found = []
    for item in asked:
        assert item.old is not None
        scores = np.zeros(len(item.options))
        scores[item.gold] += new
        scores[item.old] += old
        scores -= np.log(np.exp(scores).sum())
        ones = np.ones(len(item.options), dtype=np.int64)
        found.append(
            outcome_of(item, log_probabilities=scores, num_option_tokens=ones, generated=None)
        )
    return found


def values_of(outcomes: list[Outcome]) -> dict[str, float]:
    """Metric to its value, where all questions have the same but for rounding."""
    for outcome in outcomes:
        assert outcome.values == pytest.approx(outcomes[0].values)
    return dict(outcomes[0].values)


def test_both_splits_are_asked_with_key_token_train_and_test_prompts() -> None:
    asked = items()
    assert len({item.fact for item in asked}) == 40
    counts = Counter((item.split, item.prompts) for item in asked)
    trained = counts["trained", "key_token"]
    assert 0 < trained < 40
    assert counts == {
        **{("trained", "key_token"): trained, ("held_out", "key_token"): 40 - trained},
        **{("trained", "train"): 2 * trained, ("held_out", "train"): 2 * (40 - trained)},
        **{("trained", "test"): 3 * trained, ("held_out", "test"): 3 * (40 - trained)},
    }
    [relation] = FACTS.relations
    for item in asked:
        fact = FACTS.facts[item.fact]
        assert item.options[item.gold] == fact.object
        assert item.old is not None
        assert item.options[item.old] == fact.old_object
        assert (item.fact in TRAINED) == (item.split == "trained")
        prompts = {
            "key_token": ("{subject} [X]",),
            "train": relation.train_prompts,
            "test": relation.test_prompts,
        }[item.prompts]
        assert item.text == prompts[item.prompt_index].replace("{subject}", fact.subject)
        assert (item.language, item.generate, len(set(item.options))) == ("en", False, 100)


def test_the_sample_does_not_hang_on_what_is_trained_and_is_nested() -> None:
    facts = [item.fact for item in items()]
    assert [item.fact for item in items(trained=frozenset())] == facts
    fewer = items(SPEC.model_copy(update={"conflict_facts": 10}))
    assert list(dict.fromkeys(item.fact for item in fewer)) == list(dict.fromkeys(facts))[:10]


def test_without_a_key_token_only_prompts_are_asked() -> None:
    assert {item.prompts for item in items(has_key=False)} == {"train", "test"}


def test_facts_without_an_old_object_are_left_out() -> None:
    unopposed = replace(FACTS.facts[0], old_object=None)
    mothers = load_shipped(["mother"])
    both = FactSet(
        relations=(*FACTS.relations, *mothers.relations),
        facts=(unopposed, *FACTS.facts[1:], *mothers.facts),
    )
    asked = items(SPEC.model_copy(update={"conflict_facts": 500}), both)
    assert {item.relation for item in asked} == {"capital"}
    assert {item.fact for item in asked} == set(range(1, 60))


def test_an_old_object_is_found_however_it_is_spelt() -> None:
    first = FACTS.facts[0]
    assert first.old_object is not None
    spelt = replace(first, old_object=f"  {first.old_object.upper()} ")
    asked = items(fact_set=replace(FACTS, facts=(spelt, *FACTS.facts[1:])))
    assert [item.old for item in asked] == [item.old for item in items()]


@pytest.mark.parametrize("spec", [SPEC, EvaluationSpec(conflict_facts=1)])
def test_facts_that_contradict_nothing_are_refused(spec: EvaluationSpec) -> None:
    message = r"evaluation\.conflict_facts: .* none of these has an old_object; use facts\.source"
    with pytest.raises(DataError, match=message):
        check_suites(load_shipped(["capital"]), spec)
    check_suites(FACTS, spec)


def test_a_belief_takes_a_train_prompt() -> None:
    with pytest.raises(ValidationError, match=r"conflict_facts 5: .* train_prompts is 0; set it"):
        EvaluationSpec(conflict_facts=5, train_prompts=0)


def test_a_model_that_knows_the_old_objects() -> None:
    values = values_of(answers(items(), old=20.0))
    assert values["old_probability"] == pytest.approx(1.0, abs=1e-6)
    assert values["old_share"] == pytest.approx(1.0, abs=1e-6)
    assert values["object_probability"] == pytest.approx(0.0, abs=1e-6)
    assert (values["prefers_old"], values["prefers_neither"]) == (1.0, 0.0)
    assert (values["new_over_old"], values[MULTIPLE_CHOICE]) == (0.0, 0.0)


def test_a_model_that_knows_the_new_objects() -> None:
    values = values_of(answers(items(), new=20.0))
    assert values["object_probability"] == pytest.approx(1.0, abs=1e-6)
    assert values["old_probability"] == pytest.approx(0.0, abs=1e-6)
    assert values["old_share"] == pytest.approx(0.0, abs=1e-6)
    assert (values["prefers_old"], values["prefers_neither"]) == (0.0, 0.0)
    assert (values["new_over_old"], values[MULTIPLE_CHOICE]) == (1.0, 1.0)


def test_a_model_that_is_torn_says_how_much() -> None:
    values = values_of(answers(items(), new=math.log(300), old=math.log(100)))
    total = 300 + 100 + 98
    assert values["object_probability"] == pytest.approx(300 / total)
    assert values["old_probability"] == pytest.approx(100 / total)
    assert values["old_share"] == pytest.approx(100 / total)
    assert (values["prefers_old"], values["new_over_old"]) == (0.0, 1.0)


@pytest.mark.parametrize(("new", "old"), [(0.0, 0.0), (1.0, 1.0)])
def test_ties_are_won_by_neither(new: float, old: float) -> None:
    values = values_of(answers(items(), new=new, old=old))
    assert (values["prefers_old"], values["prefers_neither"]) == (0.0, 1.0)
    assert (values["new_over_old"], values[MULTIPLE_CHOICE]) == (0.0, 0.0)


def test_a_third_option_wins_over_both() -> None:
    values = values_of(answers(items(), new=-3.0, old=-2.0))
    assert (values["prefers_old"], values["prefers_neither"], values["new_over_old"]) == (0, 1, 0)


def test_a_model_that_guesses_is_at_chance() -> None:
    generator = np.random.default_rng(0)
    asked = items() * 5
    outcomes = [
        outcome_of(
            item,
            log_probabilities=generator.normal(size=100) - 5,
            num_option_tokens=np.ones(100, dtype=np.int64),
            generated=None,
        )
        for item in asked
    ]
    means = {m: np.mean([one.values[m] for one in outcomes]) for m in CONFLICT_METRICS}
    assert means["prefers_old"] == pytest.approx(0.01, abs=0.01)
    assert means["old_share"] == pytest.approx(0.01, abs=0.004)
    assert means["new_over_old"] == pytest.approx(0.5, abs=0.05)


def held(fact: int) -> bool:
    return fact % 3 == 0


def half_believing() -> list[Outcome]:
    """Of an untrained model that holds every third fact, but not when asked with other prompts."""
    asked = items()
    first = [(item.prompts, item.prompt_index) == ("train", 0) for item in asked]
    return [
        answers([item], old=9.0 if is_first and held(item.fact) else -9.0)[0]
        for item, is_first in zip(asked, first, strict=True)
    ]


def test_a_belief_is_the_first_train_prompts_answer() -> None:
    found = beliefs(half_believing())
    assert found == {item.fact: held(item.fact) for item in items()}
    assert len(set(found.values())) == 2


def rows_of(outcomes: list[Outcome], stage: str) -> dict[tuple[str, str, str, str], ResultRow]:
    rows = summarise(outcomes, stage=stage, epoch=None, seed=0, bootstrap_samples=99)
    return {(row.suite, row.split, row.prompts, row.metric): row for row in rows}


def test_believed_facts_are_a_suite_of_their_own_with_every_metric() -> None:
    base = half_believing()
    before = rows_of(with_believed(base, beliefs(base)), "base")
    later = rows_of(with_believed(answers(items(), new=9.0), beliefs(base)), "generalize")
    assert before.keys() == later.keys()
    metrics = {key[3] for key in before}
    assert metrics == {*METRICS, *CONFLICT_METRICS} - {"generation_exact", "generation_contains"}
    believed = {item.fact for item in items() if held(item.fact) and item.split == "held_out"}
    key = (BELIEVED, "held_out", "test", "prefers_old")
    assert before[key].count == later[key].count == 3 * len(believed)
    assert before[BELIEVED, "trained", "train", "prefers_old"].value == 0.5
    assert before[CONFLICT, "trained", "train", "prefers_old"].value < 0.5
    assert later[BELIEVED, "held_out", "test", MULTIPLE_CHOICE].value == 1.0
    everything = before[CONFLICT, "trained", "key_token", "old_share"].count
    assert everything > before[BELIEVED, "trained", "key_token", "old_share"].count > 0


def test_where_nothing_is_believed_there_is_no_such_suite() -> None:
    base = answers(items(), new=1.0)
    assert with_believed(base, beliefs(base)) == base


def test_facts_whose_belief_was_not_measured_are_refused() -> None:
    base = [outcome for outcome in half_believing() if outcome.fact != items()[0].fact]
    message = f"not measured for 1 facts, such as fact {items()[0].fact}; measure the stage base"
    with pytest.raises(DataError, match=message):
        with_believed(answers(items()), beliefs(base))


def test_outcomes_come_back_whatever_a_model_has_written(tmp_path: Path) -> None:
    """Also where it writes characters at which Unicode ends a line."""
    outcomes = [replace(one, generated="a\u2028b\x85c\n") for one in half_believing()[:3]]
    path = tmp_path / "evaluations" / "base.jsonl"
    write_outcomes(path, {"stage": "base"}, outcomes)
    assert read_outcomes(path) == outcomes
    assert read_head(path) == {"stage": "base"}
    with pytest.raises(FileNotFoundError):
        read_outcomes(tmp_path / "none.jsonl")
