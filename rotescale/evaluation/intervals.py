"""95 % intervals of the mean of a bounded metric, over facts and over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rotescale.errors import DataError

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

LEVEL = 0.95

_NORMAL_QUANTILE = 1.959963984540054
"""Of the standard normal distribution, at 0.975."""

_BLOCK_ELEMENTS = 4_000_000
"""Resampled counts that are held at once, 16 MB."""

_OUTSIDE = 1e-6
"""How far a value may lie out of its bounds: a probability out of fp32 logits can be above 1."""


def bootstrap_interval(
    values: Floats,
    *,
    facts: Labels,
    num_samples: int,
    seed: int,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float]:
    """95 % interval of the mean of ``values``, resampling facts with all their items.

    ``values`` (num_items,) float64 within ``bounds``, ``facts`` (num_items,) int64: which fact an
    item is about. The prompts of one fact are not independent, so facts are drawn, never items.
    Raises DataError where there is no value, or one outside the bounds.

    Wilson's interval for as many independent answers as the facts are worth by their bootstrap
    variance V, ``n_eff = p (1-p) / V`` (Kish 1965), which Franco, Little, Louis and Slud (2019,
    "Comparative Study of Confidence Intervals for Proportions in Complex Sample Surveys")
    recommend; with Student's t of n - 1 degrees of freedom, as V is estimated from n facts (Korn
    and Graubard 1998). Percentiles of the bootstrap are too near to each other with few facts, and
    near the bounds. Where each fact's items agree on a bound, the facts are a binomial sample,
    whose variance needs no estimate: Wilson's own interval for n answers.
    """
    fractions = _fractions(values, bounds)
    mean = float(fractions.mean())
    means, counts = _by_label(fractions, facts)
    num_facts = len(counts)
    if _alike(means):
        return _scaled(_if_alike(mean, num_facts), bounds)
    if np.isin(means, (0.0, 1.0)).all() and np.ptp(counts) == 0:
        return _scaled(_wilson(mean, _NORMAL_QUANTILE**2 / num_facts), bounds)
    margin = _squared_margin(means, counts, num_samples=num_samples, seed=seed)
    return _scaled(_wilson(mean, margin / (mean * (1 - mean))), bounds)


def crossed_interval(
    values: Floats,
    *,
    facts: Labels,
    seeds: Labels,
    num_samples: int,
    seed: int,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` over facts *and* training seeds, both as samples.

    ``values`` (num_items,) float64 within ``bounds``; ``facts`` and ``seeds`` (num_items,) int64:
    which fact an item is about, and which run's model answered. The same facts come back under
    every seed, so neither items nor pairs are independent. Raises DataError where there is no
    value, one outside the bounds, or fewer than two seeds.

    No bootstrap is exact for crossed factors (McCullagh 2000, "Resampling and exchangeable
    arrays"). Owen's pigeonhole bootstrap (2007) resamples both, whose variances then add up, and
    errs towards too wide. Here each is resampled alone and widened by its own t, of n - 1 degrees
    of freedom, and the squares of the margins are added (Howe 1974; Zou and Donner 2008). One t of
    the sum, with Satterthwaite's degrees of freedom, covers too little where seeds differ much.

    **With two or three seeds** the variance between seeds is barely known (t is 12.7 and 4.3), so
    the interval mostly says that: it is wide. It is about other seeds of the same procedure and
    other facts of the same kind; for these models alone, use ``bootstrap_interval`` and say so.
    Where all answers are alike the width is that of the facts, and knows no seed that would fail.
    """
    fractions = _fractions(values, bounds)
    mean = float(fractions.mean())
    of_seeds, of_facts = _by_label(fractions, seeds), _by_label(fractions, facts)
    num_facts = len(of_facts[1])
    if len(of_seeds[1]) < 2:
        raise DataError("one seed only: nothing is known of others; use bootstrap_interval")
    if num_facts < 2 or (_alike(of_seeds[0]) and _alike(of_facts[0])):
        return _scaled(_if_alike(mean, num_facts), bounds)
    margin = sum(
        _squared_margin(means, counts, num_samples=num_samples, seed=seed)
        for means, counts in (of_seeds, of_facts)
    )
    return _scaled(_wilson(mean, margin / (mean * (1 - mean))), bounds)


def interval_over_seeds(
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    *,
    bounds: tuple[float, float],
) -> tuple[float, float]:
    """95 % interval over facts *and* seeds of the mean of one value per seed.

    ``values``: what each seed's run measured; ``intervals``: each one's own, over facts;
    ``bounds``: where it is cut. For values that are no mean of answers, such as ΔCosSim, so that
    ``crossed_interval`` has nothing to resample. Raises DataError where there are fewer than two
    seeds.

    As there the margin over seeds, s / √n times t of n - 1 degrees of freedom, and that over facts
    are added as squares. The facts' margin is the root mean square of the runs' own, to either
    side, and does not shrink with the number of seeds: right where every seed is asked about the
    same facts and errs alike about each, too wide where it is not.
    """
    if len(values) < 2:
        raise DataError("one seed only: nothing is known of others; its own interval is all")
    found = np.array(values)
    mean = float(found.mean())
    of_seeds = (t_quantile(len(values) - 1) * float(found.std(ddof=1))) ** 2 / len(values)
    below, above = (
        math.sqrt(of_seeds + float(((found - np.array(ends)) ** 2).mean()))
        for ends in zip(*intervals, strict=True)
    )
    return max(bounds[0], mean - below), min(bounds[1], mean + above)


def t_quantile(degrees_of_freedom: int) -> float:
    """Student's t at 0.975, within 0.2 %; for 1 and 2 degrees of freedom exactly.

    By the expansion in 1 / degrees of freedom of Abramowitz and Stegun (1964), 26.7.5.
    """
    if degrees_of_freedom == 1:
        return math.tan(math.pi * LEVEL / 2)
    if degrees_of_freedom == 2:
        return LEVEL * math.sqrt(2 / (1 - LEVEL**2))
    x, n = _NORMAL_QUANTILE, degrees_of_freedom
    return (
        x
        + (x**3 + x) / (4 * n)
        + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * n**2)
        + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * n**3)
        + (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / (92160 * n**4)
    )


def _wilson(mean: float, squared: float) -> tuple[float, float]:
    """All p with ``(mean - p)² <= squared * p * (1-p)`` (Wilson 1927).

    ``squared`` is z² / n for n independent answers, and t² V / (mean * (1-mean)) for a mean of
    variance V.
    """
    middle = (mean + squared / 2) / (1 + squared)
    half = math.sqrt(squared * mean * (1 - mean) + squared**2 / 4) / (1 + squared)
    return middle - half, middle + half


def _if_alike(mean: float, num_facts: int) -> tuple[float, float]:
    """The interval where all facts have the same mean.

    The bootstrap has seen no variation, which is not certainty: another fact may differ with a
    probability of up to z² / (n + z²), Wilson's limit after 0 of n (about the rule of three's
    3 / n), and then lie at either bound. So 50 of 50 give [0.93, 1], and one fact hardly anything.
    """
    other = _NORMAL_QUANTILE**2 / (num_facts + _NORMAL_QUANTILE**2)
    return mean * (1 - other), mean * (1 - other) + other


def _fractions(values: Floats, bounds: tuple[float, float]) -> Floats:
    """Where within the bounds each value lies, 0 to 1."""
    low, high = bounds
    if not len(values):
        raise DataError("no values, so no interval")
    fractions = (values - low) / (high - low)
    outside = ~((fractions >= -_OUTSIDE) & (fractions <= 1 + _OUTSIDE))
    if outside.any():
        raise DataError(f"{values[outside][0]} is not within the metric's bounds, {low} to {high}")
    return fractions.clip(0.0, 1.0)


def _scaled(interval: tuple[float, float], bounds: tuple[float, float]) -> tuple[float, float]:
    """From fractions back to values; rounding leads to nothing outside the bounds."""
    low, high = (bounds[0] + (bounds[1] - bounds[0]) * end for end in interval)
    return max(low, bounds[0]), min(high, bounds[1])


def _by_label(fractions: Floats, labels: Labels) -> tuple[Floats, Labels]:
    """Mean and number of items of each label, in the order of labels, both (num_labels,)."""
    _, places = np.unique(labels, return_inverse=True)
    counts = np.bincount(places)
    return np.bincount(places, weights=fractions) / counts, counts


def _alike(means: Floats) -> bool:
    """Whether all means are one, up to rounding."""
    return bool(np.ptp(means) <= 1e-9 * means.max())


def _squared_margin(means: Floats, counts: Labels, *, num_samples: int, seed: int) -> float:
    """t² V, with the V of ``_bootstrap_variance``."""
    variance = _bootstrap_variance(means, counts, num_samples=num_samples, seed=seed)
    return t_quantile(len(counts) - 1) ** 2 * variance


def _bootstrap_variance(means: Floats, counts: Labels, *, num_samples: int, seed: int) -> float:
    """Variance of the mean over items by bootstrap over labels (Efron 1979).

    ``means`` and ``counts`` (num_labels,): of the items of each label. A draw's mean is its sum of
    values over its number of items. Times n / (n-1) for n labels, as the draws vary about what was
    seen as the sample does, too little by that (Hesterberg 2015, "What Teachers Should Know About
    the Bootstrap").
    """
    columns = np.column_stack([means * counts, counts])
    drawn_means = []
    for weights in _resamplings(len(counts), num_samples=num_samples, seed=seed):
        drawn = weights @ columns
        drawn_means.append(drawn[:, 0] / drawn[:, 1])
    return float(np.concatenate(drawn_means).var()) * len(counts) / (len(counts) - 1)


def _resamplings(num_labels: int, *, num_samples: int, seed: int) -> Iterator[npt.NDArray[Any]]:
    """Blocks (num_rows, num_labels) of how often each is drawn, ``num_samples`` rows in all."""
    num_rows = max(1, _BLOCK_ELEMENTS // num_labels)
    for block, start in enumerate(range(0, num_samples, num_rows)):
        yield _block(num_labels, min(num_rows, num_samples - start), seed, block)


# Every metric of every group of as many facts shares the draws.
@lru_cache(maxsize=8)
def _block(num_labels: int, num_rows: int, seed: int, block: int) -> npt.NDArray[np.float32]:
    generator = np.random.default_rng((seed, num_labels, block))
    probabilities = np.full(num_labels, 1.0 / num_labels)
    drawn = generator.multinomial(num_labels, probabilities, size=num_rows)
    return drawn.astype(np.float32)
