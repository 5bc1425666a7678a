"""From what a model said about each item to metrics, with intervals by bootstrap over facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rotescale.errors import DataError
from rotescale.evaluation.answers import generation_contains, generation_exact
from rotescale.evaluation.items import PROMPT_KINDS, SPLITS, Item
from rotescale.records import ALL_RELATIONS

Floats = npt.NDArray[np.float64]

METRICS = (
    *("multiple_choice", "multiple_choice_normalized", "object_probability", "object_share"),
    *("generation_exact", "generation_contains"),
)
"""Every metric, in the order of the rows."""

_BLOCK_ELEMENTS = 4_000_000
"""Resampled counts that are held at once, 16 MB."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model said about one item, enough to compute every row and interval again."""

    fact: int
    relation: str
    split: str
    prompts: str
    prompt_index: int
    language: str
    gold: str
    chosen: str
    """The option of the greatest summed log-probability."""
    values: Mapping[str, float]
    """Metric to value; the generation metrics only where the model answered freely."""
    generated: str | None = None

    @property
    def key(self) -> tuple[int, str, str, str, int, str]:
        """Which item this is, the same at every stage."""
        return (
            *(self.fact, self.relation, self.split),
            *(self.prompts, self.prompt_index, self.language),
        )

    def to_json(self) -> dict[str, Any]:
        """A dict that json can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Outcome:
        """The outcome that ``to_json`` was called on."""
        return cls(**raw)


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One measured value: the mean over ``count`` items, and its 95 % interval."""

    relation: str
    stage: str
    epoch: int | None
    seed: int
    suite: str
    split: str
    prompts: str
    language: str
    metric: str
    value: float
    count: int
    low: float
    high: float


def outcome_of(
    item: Item,
    *,
    log_probabilities: Floats,
    num_option_tokens: npt.NDArray[np.int64],
    generated: str | None,
) -> Outcome:
    """The metrics of one item from its options' log-probabilities, both (num_options,)."""
    normalised = log_probabilities / num_option_tokens
    gold = item.options[item.gold]
    # Relative to the greatest, so that no exponential overflows.
    masses = np.exp(log_probabilities - log_probabilities.max())
    values = {
        "multiple_choice": _wins(log_probabilities, item.gold),
        "multiple_choice_normalized": _wins(normalised, item.gold),
        "object_probability": float(np.exp(log_probabilities[item.gold])),
        "object_share": float(masses[item.gold] / masses.sum()),
    }
    if generated is not None:
        values["generation_exact"] = float(generation_exact(generated, gold))
        values["generation_contains"] = float(generation_contains(generated, gold))
    return Outcome(
        *(item.fact, item.relation, item.split, item.prompts, item.prompt_index, item.language),
        gold=gold,
        chosen=item.options[int(log_probabilities.argmax())],
        values=values,
        generated=generated,
    )


def _wins(scores: Floats, gold: int) -> float:
    """1 where the gold's score is above every other; a tie is not an answer."""
    return float(bool((np.delete(scores, gold) < scores[gold]).all()))


def summarise(
    outcomes: Sequence[Outcome],
    *,
    stage: str,
    epoch: int | None,
    seed: int,
    suite: str = "core",
    bootstrap_samples: int = 10_000,
) -> tuple[ResultRow, ...]:
    """A row per relation (and for all, where there are several), split, prompts and metric."""
    rows = []
    for relation, split, prompts, language, group in _groups(outcomes):
        for metric in METRICS:
            measured = [outcome for outcome in group if metric in outcome.values]
            if not measured:
                continue
            values = np.array([outcome.values[metric] for outcome in measured])
            facts = np.array([outcome.fact for outcome in measured])
            low, high = bootstrap_interval(
                values, facts=facts, num_samples=bootstrap_samples, seed=seed
            )
            rows.append(
                ResultRow(
                    *(relation, stage, epoch, seed, suite, split, prompts, language, metric),
                    value=float(values.mean()),
                    count=len(measured),
                    low=low,
                    high=high,
                )
            )
    return tuple(rows)


def bootstrap_interval(
    values: Floats, *, facts: npt.NDArray[np.int64], num_samples: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values``, resampling facts with all their items.

    ``values`` (num_items,) float64, ``facts`` (num_items,) int64. The prompts of one fact are not
    independent, so facts are drawn, never items. One fact alone gives an interval of no width.
    """
    _, places = np.unique(facts, return_inverse=True)
    counts = np.bincount(places)
    columns = np.column_stack([np.bincount(places, weights=values), counts])
    means = []
    for weights in _resamplings(len(counts), num_samples=num_samples, seed=seed):
        drawn = weights @ columns
        means.append(drawn[:, 0] / drawn[:, 1])
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def paired_difference(
    outcomes_a: Sequence[Outcome],
    outcomes_b: Sequence[Outcome],
    *,
    metric: str,
    seed: int,
    bootstrap_samples: int = 10_000,
) -> tuple[float, float, float]:
    """Mean of b - a over the same items, and its 95 % interval, resampling facts in pairs.

    Raises DataError where the two do not hold the same items, or none that has the metric.
    """
    a = {outcome.key: outcome for outcome in outcomes_a}
    b = {outcome.key: outcome for outcome in outcomes_b}
    unpaired = sorted(a.keys() ^ b.keys())
    if unpaired:
        raise DataError(
            f"{len(unpaired)} items are in one of the two evaluations only, such as {unpaired[0]}; "
            "compare evaluations of one sample (same seed, facts and evaluation spec)"
        )
    keys = [key for key in a if metric in a[key].values and metric in b[key].values]
    if not keys:
        raise DataError(f"no item has the metric {metric!r}; metrics are: {', '.join(METRICS)}")
    differences = np.array([b[key].values[metric] - a[key].values[metric] for key in keys])
    facts = np.array([a[key].fact for key in keys])
    low, high = bootstrap_interval(
        differences, facts=facts, num_samples=bootstrap_samples, seed=seed
    )
    return float(differences.mean()), low, high


_Group = tuple[str, str, str, str, list[Outcome]]


def _groups(outcomes: Sequence[Outcome]) -> Iterator[_Group]:
    """Outcomes by relation (then all), split, prompts and language, in a fixed order."""
    relations = list(dict.fromkeys(outcome.relation for outcome in outcomes))
    languages = list(dict.fromkeys(outcome.language for outcome in outcomes))
    chosen: list[tuple[str, Callable[[str], bool]]] = [
        (relation, relation.__eq__) for relation in relations
    ]
    if len(relations) > 1:
        chosen.append((ALL_RELATIONS, lambda _: True))
    for name, wanted in chosen:
        of_relation = [outcome for outcome in outcomes if wanted(outcome.relation)]
        for split in SPLITS:
            for prompts in PROMPT_KINDS:
                for language in languages:
                    key = (split, prompts, language)
                    group = [o for o in of_relation if (o.split, o.prompts, o.language) == key]
                    if group:
                        yield name, split, prompts, language, group


def _resamplings(num_facts: int, *, num_samples: int, seed: int) -> Iterator[npt.NDArray[Any]]:
    """Blocks (num_rows, num_facts) of how often each fact is drawn, ``num_samples`` rows in all."""
    num_rows = max(1, _BLOCK_ELEMENTS // num_facts)
    for block, start in enumerate(range(0, num_samples, num_rows)):
        yield _block(num_facts, min(num_rows, num_samples - start), seed, block)


# Every metric of every group of as many facts shares the draws.
@lru_cache(maxsize=8)
def _block(num_facts: int, num_rows: int, seed: int, block: int) -> npt.NDArray[np.float32]:
    generator = np.random.default_rng((seed, num_facts, block))
    probabilities = np.full(num_facts, 1.0 / num_facts)
    drawn = generator.multinomial(num_facts, probabilities, size=num_rows)
    return drawn.astype(np.float32)
