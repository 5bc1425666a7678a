"""ΔCosSim and cosines on vectors whose answers are known, and the intervals around them."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from rotescale.evaluation.similarity import (
    Floats,
    Labels,
    Measuring,
    delta_cosine,
    similarity_rows,
    unit_states,
)
from rotescale.evaluation.states import StateText

MEASURING = Measuring("base", None, seed=0, bootstrap_samples=200)


def direct(states: Floats, facts: Labels, relations: Labels) -> float:
    """ΔCosSim over all pairs, one by one."""
    within, between = [], []
    for i, j in permutations(range(len(states)), 2):
        if relations[i] != relations[j]:
            between.append(states[i] @ states[j])
        elif facts[i] != facts[j]:
            within.append(states[i] @ states[j])
    return float(np.mean(within) - np.mean(between))


def drawn(num_facts: int, *, means: Floats, rng: np.random.Generator) -> Floats:
    """Unit states of as many facts of each relation, around the relation's mean."""
    noise = rng.normal(size=(len(means), num_facts, means.shape[1]))
    return unit_states((means[:, None] + noise).reshape(-1, means.shape[1]))


def test_delta_cosine_of_constructed_vectors() -> None:
    facts, relations = np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1])
    same = delta_cosine(unit_states(np.ones((4, 3))), facts=facts, relations=relations)
    assert same is not None
    assert same.value == pytest.approx(0.0, abs=1e-12)
    apart = np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 3.0, 0], [0, 4.0, 0]])
    found = delta_cosine(unit_states(apart), facts=facts, relations=relations)
    assert found is not None
    assert found.value == pytest.approx(1.0)
    opposed = np.array([[1.0, 0], [1.0, 0], [-1.0, 0], [-1.0, 0]])
    found = delta_cosine(unit_states(opposed), facts=facts, relations=relations)
    assert found is not None
    assert found.value == pytest.approx(2.0)


def test_delta_cosine_never_pairs_states_of_one_fact() -> None:
    # Each fact's two states are alike, and those of different facts at right angles.
    states = np.repeat(np.eye(4), 2, axis=0)
    facts = np.repeat(np.arange(4), 2)
    found = delta_cosine(states, facts=facts, relations=facts // 2)
    assert found is not None
    assert found.value == pytest.approx(0.0, abs=1e-12)


def test_delta_cosine_is_the_mean_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    # Relations of different sizes, and facts with different numbers of states.
    facts = np.array([7, 7, 9, 2, 2, 2, 30, 4, 4, 5])
    relations = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    states = unit_states(rng.normal(size=(10, 6)))
    found = delta_cosine(states, facts=facts, relations=relations)
    assert found is not None
    assert found.value == pytest.approx(direct(states, facts, relations), abs=1e-12)


def test_the_interval_is_the_jackknifes() -> None:
    rng = np.random.default_rng(1)
    states = drawn(5, means=rng.normal(size=(2, 8)), rng=rng)
    facts, relations = np.arange(10), np.repeat([0, 1], 5)
    left = [
        direct(states[facts != fact], facts[facts != fact], relations[facts != fact])
        for fact in facts
    ]
    variance = sum(4 / 5 * np.square(part - np.mean(part)).sum() for part in (left[:5], left[5:]))
    found = delta_cosine(states, facts=facts, relations=relations)
    assert found is not None
    assert found.interval is not None
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(found.value)
    # Student's t of 8 degrees of freedom.
    assert (high - low) / 2 == pytest.approx(2.306 * np.sqrt(variance), rel=1e-3)


def test_the_interval_holds_the_truth() -> None:
    rng = np.random.default_rng(2)
    means = 0.5 * rng.normal(size=(3, 16))

    def measured(num_facts: int) -> tuple[float, tuple[float, float]]:
        states = drawn(num_facts, means=means, rng=rng)
        relations = np.repeat(np.arange(3), num_facts)
        found = delta_cosine(states, facts=np.arange(3 * num_facts), relations=relations)
        assert found is not None
        assert found.interval is not None
        return found.value, found.interval

    truth = np.mean([measured(1000)[0] for _ in range(10)])
    intervals = [measured(10)[1] for _ in range(400)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.9 < covered < 0.98


def test_delta_cosine_needs_two_relations_and_two_facts_of_one() -> None:
    states = unit_states(np.random.default_rng(3).normal(size=(4, 5)))
    facts = np.arange(4)
    assert delta_cosine(states, facts=facts, relations=np.zeros(4, dtype=np.int64)) is None
    assert delta_cosine(states, facts=facts, relations=facts) is None
    lonely = delta_cosine(states, facts=facts, relations=np.array([0, 0, 0, 1]))
    assert lonely is not None
    assert lonely.interval is None


def text(fact: int, prompts: str, index: int = 0, *, split: str = "held_out") -> StateText:
    relation = "mother" if fact < 10 else "author"
    return StateText(fact, relation, split, prompts, index, "en", f"{fact} {prompts} {index}")


def test_rows_pair_a_facts_prompts_with_its_own_key_token() -> None:
    texts = [
        *(text(1, "key_token"), text(12, "key_token"), text(3, "key_token", split="trained")),
        *(text(12, "test", 0), text(12, "test", 1), text(1, "test", 0)),
        text(3, "train", split="trained"),
    ]
    states = np.array(
        [[1.0, 0], [0, 1.0], [1.0, 1.0], [0, 2.0], [3.0, 0], [1.0, 1.0], [-1.0, -1.0]]
    )
    rows = similarity_rows(states.astype(np.float32), texts, layer=2, measuring=MEASURING)
    cosines = {(r.split, r.prompts): r for r in rows if r.metric == "cosine"}
    assert set(cosines) == {("held_out", "test"), ("trained", "train")}
    tests = cosines["held_out", "test"]
    assert (tests.count, tests.layer, tests.suite) == (3, 2, "representations")
    assert (tests.relation, tests.stage, tests.epoch) == ("all", "base", None)
    assert tests.value == pytest.approx((1.0 + 0.0 + 0.5**0.5) / 3)
    assert tests.low is not None
    assert tests.high is not None
    assert -1 <= tests.low <= tests.value <= tests.high <= 1
    assert cosines["trained", "train"].value == pytest.approx(-1.0)
    assert not [row for row in rows if row.metric == "delta_cosine"], "one fact of each relation"
    assert len({row.key for row in rows}) == len(rows)


def test_a_state_of_zeros_is_like_no_other() -> None:
    texts = [text(1, "key_token"), text(1, "test")]
    states = np.array([[0.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    (row,) = similarity_rows(states, texts, layer=0, measuring=MEASURING)
    assert (row.relation, row.metric, row.value) == ("mother", "cosine", 0.0)
