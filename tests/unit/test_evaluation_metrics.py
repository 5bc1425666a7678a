"""Metrics: definitions, ties, groups, and paired differences, over seeds too."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rotescale.errors import DataError
from rotescale.evaluation.items import Item
from rotescale.evaluation.metrics import (
    METRICS,
    TEXT_LOSS,
    Outcome,
    mean_over_seeds,
    outcome_of,
    paired_difference,
    paired_difference_over_seeds,
    summarise,
)


def item(**changes: object) -> Item:
    values: dict[str, object] = {
        "fact": 0,
        "relation": "mother",
        "split": "held_out",
        "prompts": "test",
        "prompt_index": 0,
        "language": "en",
        "text": "Who?",
        "options": ("Ann Lee", "Cody Ross", "Eve"),
        "gold": 1,
        "generate": False,
        **changes,
    }
    return Item(**values)  # type: ignore[arg-type]


def measured(log_probabilities: list[float], lengths: list[int], generated: str | None) -> Outcome:
    return outcome_of(
        item(),
        log_probabilities=np.array(log_probabilities),
        num_option_tokens=np.array(lengths),
        generated=generated,
    )


def outcome(fact: int, value: float, **changes: object) -> Outcome:
    values: dict[str, object] = {
        "fact": fact,
        "relation": "mother",
        "split": "held_out",
        "prompts": "test",
        "prompt_index": 0,
        "language": "en",
        "gold": "a",
        "chosen": "a",
        "values": {"multiple_choice": value},
        **changes,
    }
    return Outcome(**values)  # type: ignore[arg-type]


def test_definitions() -> None:
    one = measured([-4.0, -3.0, -2.0], [2, 4, 1], "Cody Ross. He")
    assert one.values["multiple_choice"] == 0.0
    assert one.values["multiple_choice_normalized"] == 1.0
    assert one.values["object_probability"] == pytest.approx(math.exp(-3))
    total = math.exp(-4) + math.exp(-3) + math.exp(-2)
    assert one.values["object_share"] == pytest.approx(math.exp(-3) / total)
    assert one.values["generation_exact"] == 1.0
    assert one.values["generation_contains"] == 1.0
    assert (one.gold, one.chosen) == ("Cody Ross", "Eve")


def test_ties_count_as_wrong() -> None:
    one = measured([-3.0, -3.0, -9.0], [1, 1, 1], None)
    assert one.values["multiple_choice"] == 0.0
    assert one.values["multiple_choice_normalized"] == 0.0
    assert "generation_exact" not in one.values


def test_tiny_probabilities_stay_finite() -> None:
    with np.errstate(all="raise", under="ignore"):
        one = measured([-10.0, -2000.0, -1000.0], [1, 1, 1], None)
    assert one.values["object_share"] == 0.0
    assert one.values["object_probability"] == 0.0


def test_outcomes_survive_json() -> None:
    one = measured([-4.0, -3.0, -2.0], [2, 4, 1], "Cody\u2019s 東京")
    assert Outcome.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_rows_are_grouped_and_splits_never_mixed() -> None:
    outcomes = [
        outcome(place, value, relation=relation, split=split)
        for relation, first in (("mother", 0), ("capital", 100))
        for split, value, start in (("trained", 1.0, 0), ("held_out", 0.0, 50))
        for place in range(first + start, first + start + 50)
    ]
    rows = summarise(outcomes, stage="memorize", epoch=3, seed=7, bootstrap_samples=200)
    found = {(row.relation, row.split): row for row in rows}
    assert set(found) == {
        (relation, split)
        for relation in ("mother", "capital", "all")
        for split in ("trained", "held_out")
    }
    for (relation, split), row in found.items():
        assert row.value == (1.0 if split == "trained" else 0.0)
        assert row.count == (100 if relation == "all" else 50)
        assert (row.stage, row.epoch, row.seed, row.metric) == ("memorize", 3, 7, "multiple_choice")


def test_one_relation_gets_no_row_for_all_and_every_metric_is_kept() -> None:
    ones = [measured([-4.0, -3.0, -2.0], [2, 4, 1], text) for text in ("Cody Ross", None)]
    rows = summarise(ones, stage="base", epoch=None, seed=0, bootstrap_samples=50)
    assert [row.metric for row in rows] == list(METRICS)
    assert {row.relation for row in rows} == {"mother"}
    assert [row.count for row in rows] == [2, 2, 2, 2, 1, 1]


def test_paired_difference_is_narrower_than_unpaired() -> None:
    generator = np.random.default_rng(0)
    skill, gain = generator.random(80) * 0.8, generator.random(80) * 0.2
    a = [outcome(place, float(skill[place])) for place in range(80)]
    b = [outcome(place, float(skill[place] + gain[place])) for place in range(80)]
    difference, low, high = paired_difference(a, b[::-1], metric="multiple_choice", seed=0)
    assert difference == pytest.approx(gain.mean())
    assert low < difference < high
    assert high - low == pytest.approx(4 * gain.std() / math.sqrt(80), rel=0.1)
    backwards = paired_difference(b, a, metric="multiple_choice", seed=0)
    assert backwards == pytest.approx((-difference, -high, -low))


def test_no_difference_at_all_is_not_certain() -> None:
    a = [outcome(place, 1.0) for place in range(50)]
    difference, low, high = paired_difference(a, a, metric="multiple_choice", seed=0)
    assert difference == 0.0
    assert (low, high) == pytest.approx((-0.0713, 0.0713), abs=1e-3)


def test_paired_difference_resamples_facts() -> None:
    gains = (np.random.default_rng(0).random(40) < 0.5).astype(float)
    a = [outcome(place, 0.0, prompt_index=i) for place in range(40) for i in range(5)]
    b = [outcome(place, gains[place], prompt_index=i) for place in range(40) for i in range(5)]
    difference, low, high = paired_difference(a, b, metric="multiple_choice", seed=0)
    assert difference == pytest.approx(gains.mean())
    assert high - low == pytest.approx(2 * 1.96 * gains.std() / math.sqrt(40), rel=0.15)


def test_paired_difference_refuses_different_items() -> None:
    a = [outcome(place, 0.0) for place in range(3)]
    with pytest.raises(DataError, match="1 items are in one of the two"):
        paired_difference(a, a[:2], metric="multiple_choice", seed=0)
    with pytest.raises(DataError, match="no item has the metric 'generation_exact'"):
        paired_difference(a, a, metric="generation_exact", seed=0)


def of_seeds(accuracies: list[float], *, shift: float = 0.0) -> dict[int, list[Outcome]]:
    """By seed, 40 facts with two prompts; the first facts are right, ``shift`` more of them."""
    return {
        seed: [
            outcome(fact, float(fact < 40 * (accuracy + shift)), prompt_index=i)
            for fact in range(40)
            for i in range(2)
        ]
        for seed, accuracy in enumerate(accuracies)
    }


def test_mean_over_seeds_is_wider_than_each_seed() -> None:
    outcomes = of_seeds([0.4, 0.5, 0.6])
    mean, low, high = mean_over_seeds(outcomes, metric="multiple_choice", seed=0)
    assert mean == pytest.approx(0.5)
    rows = summarise(outcomes[1], stage="x", epoch=None, seed=0)
    assert high - low > rows[0].high - rows[0].low
    assert low < 0.4 < 0.6 < high


def test_paired_difference_over_seeds_cancels_what_seeds_share() -> None:
    a, b = of_seeds([0.2, 0.5, 0.7]), of_seeds([0.2, 0.5, 0.7], shift=0.2)
    difference, low, high = paired_difference_over_seeds(a, b, metric="multiple_choice", seed=0)
    assert difference == pytest.approx(0.2)
    assert -1.0 <= low < difference < high <= 1.0
    alone = mean_over_seeds(a, metric="multiple_choice", seed=0)
    assert high - low < 0.6 * (alone[2] - alone[1])


def test_losses_over_seeds_have_their_own_bounds() -> None:
    def losses(more: float) -> dict[int, list[Outcome]]:
        return {
            seed: [
                outcome(piece, 0.0, values={TEXT_LOSS: 3.0 + 0.1 * (piece % 3) + 0.2 * seed + more})
                for piece in range(20)
            ]
            for seed in range(3)
        }

    mean, low, high = mean_over_seeds(losses(0.0), metric=TEXT_LOSS, seed=0)
    assert mean == pytest.approx(3.295)
    assert 2.0 < low < mean < high < 5.0
    change, low, high = paired_difference_over_seeds(
        losses(0.0), losses(1.5), metric=TEXT_LOSS, seed=0
    )
    assert change == pytest.approx(1.5)
    assert low <= change <= high


def test_comparisons_over_seeds_refuse_what_does_not_pair() -> None:
    three, two = of_seeds([0.2, 0.5, 0.7]), of_seeds([0.2, 0.5])
    with pytest.raises(DataError, match=r"seeds \[0, 1, 2\] and \[0, 1\] differ"):
        paired_difference_over_seeds(three, two, metric="multiple_choice", seed=0)
    with pytest.raises(DataError, match="1 seeds: an interval over seeds takes two"):
        mean_over_seeds({0: two[0]}, metric="multiple_choice", seed=0)
    with pytest.raises(DataError, match="no item has the metric 'generation_exact'"):
        mean_over_seeds(two, metric="generation_exact", seed=0)
    changed = {**two, 1: two[1][1:]}
    with pytest.raises(DataError, match="1 items are in one of the two"):
        paired_difference_over_seeds(two, changed, metric="multiple_choice", seed=0)
