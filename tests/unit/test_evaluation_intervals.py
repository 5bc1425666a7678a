"""Intervals: coverage on simulated answers, honest widths where all is alike, seeds and facts."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest

from rotescale.errors import DataError
from rotescale.evaluation.intervals import (
    bootstrap_interval,
    crossed_interval,
    interval_over_seeds,
    t_quantile,
)

ACCURACIES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
NUM_DATASETS = 150

Floats = npt.NDArray[np.float64]


def answers(
    accuracy: float, shape: tuple[int, int], correlation: float, generator: np.random.Generator
) -> Floats:
    """Right or wrong (num_facts, num_prompts): two prompts of a fact correlate (beta-binomial)."""
    of_facts = np.full(shape[0], accuracy)
    if correlation:
        total = 1 / correlation - 1
        of_facts = generator.beta(accuracy * total, (1 - accuracy) * total, size=shape[0])
    return (generator.random(shape) < of_facts[:, None]).astype(float)


def interval(values: Floats, **options: object) -> tuple[float, float]:
    """Of values (num_facts, num_prompts)."""
    facts = np.repeat(np.arange(values.shape[0]), values.shape[1])
    options = {"num_samples": 500, "seed": 0, **options}
    return bootstrap_interval(values.ravel(), facts=facts, **options)  # type: ignore[arg-type]


def test_intervals_cover_93_to_97_percent_of_clustered_answers() -> None:
    generator = np.random.default_rng(0)
    settings = [
        (num_facts, num_prompts, correlation)
        for num_facts in (10, 25, 50, 100)
        for num_prompts, correlation in ((1, 0.0), (3, 0.6), (10, 0.0), (10, 0.3), (10, 0.9))
    ]
    covered = np.zeros((len(settings), len(ACCURACIES)))
    for i, (num_facts, num_prompts, correlation) in enumerate(settings):
        for j, accuracy in enumerate(ACCURACIES):
            for _ in range(NUM_DATASETS):
                values = answers(accuracy, (num_facts, num_prompts), correlation, generator)
                low, high = interval(values)
                assert 0.0 <= low < high <= 1.0
                covered[i, j] += low - 1e-9 <= accuracy <= high + 1e-9
    covered /= NUM_DATASETS
    assert 0.93 < covered.mean() < 0.97
    # By number of facts, and by correlation: no surplus here hides a lack there.
    by_setting = covered.mean(axis=1).reshape(4, 5)
    for means in (by_setting.mean(axis=0), by_setting.mean(axis=1), covered.mean(axis=0)):
        assert means.min() > 0.92
        assert means.max() < 0.98


def crossed(
    shape: tuple[int, int, int], seed_share: float, generator: np.random.Generator
) -> Floats:
    """A normal variable (num_seeds, num_facts, num_prompts), 0.4 of its variance the facts'."""
    num_seeds, num_facts, _ = shape
    half = (0.6 - seed_share) / 2
    return (
        math.sqrt(0.4) * generator.normal(size=(1, num_facts, 1))
        + math.sqrt(seed_share) * generator.normal(size=(num_seeds, 1, 1))
        + math.sqrt(half) * generator.normal(size=(num_seeds, num_facts, 1))
        + math.sqrt(half) * generator.normal(size=shape)
    )


def over_seeds(values: Floats, **options: object) -> tuple[float, float]:
    """Of values (num_seeds, num_facts, num_prompts)."""
    seeds, facts, _ = (places.ravel() for places in np.indices(values.shape))
    options = {"num_samples": 300, "seed": 0, **options}
    return crossed_interval(values.ravel(), facts=facts, seeds=seeds, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed_share", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("num_seeds", [2, 3])
def test_intervals_over_few_seeds_cover_at_least_as_often_as_they_say(
    num_seeds: int, seed_share: float
) -> None:
    generator = np.random.default_rng(1)
    covered = []
    for accuracy in ACCURACIES:
        threshold = NormalDist().inv_cdf(accuracy)
        for _ in range(NUM_DATASETS):
            variable = crossed((num_seeds, 30, 3), seed_share, generator)
            low, high = over_seeds((variable < threshold).astype(float))
            assert 0.0 <= low < high <= 1.0
            covered.append(low <= accuracy <= high)
    assert np.mean(covered) > 0.94


@pytest.mark.parametrize("seed_share", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("num_seeds", [2, 3])
def test_intervals_of_each_seed_make_one_that_covers_at_least_as_often(
    num_seeds: int, seed_share: float
) -> None:
    generator = np.random.default_rng(2)
    covered = []
    for _ in range(1500):
        of_facts = crossed((num_seeds, 20, 3), seed_share, generator).mean(axis=2)
        means = of_facts.mean(axis=1)
        halves = t_quantile(19) * of_facts.std(axis=1, ddof=1) / math.sqrt(20)
        low, high = interval_over_seeds(
            means.tolist(), [*zip(means - halves, means + halves, strict=True)], bounds=(-9.0, 9.0)
        )
        covered.append(low <= 0.0 <= high)
    assert np.mean(covered) > 0.94
    # Not so wide that it holds anything.
    assert high - low < 2 * t_quantile(num_seeds - 1)


def test_an_interval_over_seeds_by_hand() -> None:
    low, high = interval_over_seeds([0.1, 0.3], [(0.0, 0.1), (0.1, 0.7)], bounds=(-2.0, 2.0))
    seeds = t_quantile(1) * math.sqrt(0.02) / math.sqrt(2)
    assert low == pytest.approx(0.2 - math.sqrt(seeds**2 + (0.1**2 + 0.2**2) / 2))
    assert high == pytest.approx(0.2 + math.sqrt(seeds**2 + (0.0**2 + 0.4**2) / 2))
    assert interval_over_seeds([0.1, 0.9], [(0.0, 0.1), (0.1, 0.7)], bounds=(-1.0, 1.0)) == (-1, 1)
    with pytest.raises(DataError, match="one seed only"):
        interval_over_seeds([0.1], [(0.0, 0.2)], bounds=(-1.0, 1.0))


@pytest.mark.parametrize("num_facts", [5, 50, 500])
def test_all_right_or_all_wrong_has_the_width_of_wilsons_interval(num_facts: int) -> None:
    lowest = num_facts / (num_facts + NormalDist().inv_cdf(0.975) ** 2)
    for num_prompts in (1, 10):
        shape = (num_facts, num_prompts)
        assert interval(np.ones(shape)) == pytest.approx((lowest, 1.0))
        assert interval(np.zeros(shape)) == pytest.approx((0.0, 1 - lowest))


def test_facts_that_are_alike_in_between_leave_room_on_both_sides() -> None:
    low, high = interval(np.tile([1.0, 0.0, 0.0, 0.0], (20, 1)))
    assert 0.0 < low < 0.25 < high < 1.0
    assert high - low == pytest.approx(3.841 / (20 + 3.841), abs=1e-3)


def test_one_fact_says_hardly_anything() -> None:
    low, high = interval(np.array([[1.0, 1.0, 0.0, 1.0]]))
    assert high - low > 0.75


def test_one_prompt_each_gives_wilsons_interval() -> None:
    values = np.zeros((20, 1))
    values[:3] = 1.0
    # By Wilson's formula, 3 of 20.
    assert interval(values) == pytest.approx((0.0523691, 0.3604192), abs=1e-6)


def test_intervals_are_over_facts_not_items() -> None:
    generator = np.random.default_rng(0)
    values = answers(0.7, (50, 10), 0.9, generator)
    low, high = interval(values)
    assert high - low == pytest.approx(4 * values.mean(axis=1).std() / math.sqrt(50), rel=0.1)
    assert high - low > 2.5 * 4 * values.std() / math.sqrt(500)
    assert low < values.mean() < high


def test_intervals_are_seeded_and_independent_of_the_order() -> None:
    generator = np.random.default_rng(1)
    values, facts = generator.random(60), np.repeat(np.arange(20), 3)
    first = bootstrap_interval(values, facts=facts, num_samples=500, seed=3)
    assert bootstrap_interval(values, facts=facts, num_samples=500, seed=3) == first
    assert bootstrap_interval(values, facts=facts, num_samples=500, seed=4) != first
    order = np.arange(60)[::-1]
    again = bootstrap_interval(values[order], facts=facts[order], num_samples=500, seed=3)
    assert again == pytest.approx(first)


def test_many_facts_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rotescale.evaluation.intervals._BLOCK_ELEMENTS", 4000)
    values = np.random.default_rng(0).random((40, 1))
    low, high = interval(values, num_samples=2050)
    assert high - low == pytest.approx(4 * values.std() / math.sqrt(40), rel=0.15)


def test_facts_of_more_prompts_count_for_more() -> None:
    facts = np.array([0] * 30 + [1, 2, 3, 4])
    values = np.array([1.0] * 30 + [0.0, 1.0, 0.0, 1.0])
    low, high = bootstrap_interval(values, facts=facts, num_samples=2000, seed=0)
    assert low < values.mean() < high <= 1.0
    assert high - low > 0.3


def test_tiny_probabilities_keep_tiny_intervals() -> None:
    values = np.exp(-40 - np.random.default_rng(0).random((50, 1)))
    low, high = interval(values)
    assert 0.0 < low < values.mean() < high < 1e-16


def test_differences_lie_in_minus_one_to_one() -> None:
    low, high = interval(np.full((50, 2), 0.0), bounds=(-1.0, 1.0))
    assert (low, high) == pytest.approx((-0.0713, 0.0713), abs=1e-3)
    assert interval(np.full((2, 2), -1.0), bounds=(-1.0, 1.0))[0] == -1.0


def test_values_out_of_bounds_are_refused() -> None:
    with pytest.raises(DataError, match=r"1\.5 is not within the metric's bounds, 0\.0 to 1\.0"):
        interval(np.array([[0.5], [1.5]]))
    with pytest.raises(DataError, match="nan is not within"):
        interval(np.array([[0.5], [math.nan]]))
    with pytest.raises(DataError, match="no values"):
        interval(np.empty((0, 1)))
    # exp of an fp32 log-probability can be a little above 1.
    assert interval(np.full((9, 1), 1 + 1e-7))[1] == 1.0


def test_seeds_that_differ_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    same = np.repeat(answers(0.5, (40, 5), 0.5, generator)[None], 3, axis=0)
    low, high = over_seeds(same, num_samples=4000)
    of_facts = interval(same[0], num_samples=4000)
    # Equal models add nothing to the variation over facts.
    assert (low, high) == pytest.approx(of_facts, abs=1e-6)
    apart = same.copy()
    apart[0], apart[1, :, 0] = 1.0, 0.0
    low_apart, high_apart = over_seeds(apart)
    assert high_apart - low_apart > 1.5 * (high - low)


def test_two_seeds_that_differ_say_little() -> None:
    values = np.stack([np.full((40, 1), 0.4), np.full((40, 1), 0.6)])
    assert over_seeds(values)[1] - over_seeds(values)[0] > 0.7
    with pytest.raises(DataError, match="one seed only"):
        over_seeds(values[:1])


def test_equal_answers_over_seeds_are_as_wide_as_over_facts() -> None:
    assert over_seeds(np.ones((3, 50, 2))) == interval(np.ones((50, 2)))


def test_t_quantiles() -> None:
    known = {1: 12.7062, 2: 4.3027, 3: 3.1824, 5: 2.5706, 9: 2.2622, 49: 2.0096, 10_000: 1.9602}
    for degrees, value in known.items():
        assert t_quantile(degrees) == pytest.approx(value, rel=2e-3)
