"""From what a model said about each item to metrics, with intervals by bootstrap over facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rotescale.errors import DataError
from rotescale.evaluation.answers import generation_contains, generation_exact
from rotescale.evaluation.intervals import bootstrap_interval, crossed_interval
from rotescale.evaluation.items import CORE, KINDS, SPLITS, Item
from rotescale.records import ALL_RELATIONS

Floats = npt.NDArray[np.float64]

METRICS = (
    *("multiple_choice", "multiple_choice_normalized", "object_probability", "object_share"),
    *("generation_exact", "generation_contains"),
)
"""Every metric of a question, 0 to 1, in the order of the rows."""

CONFLICT_METRICS = (
    *("old_probability", "old_share", "prefers_old", "prefers_neither", "new_over_old"),
)
"""Further metrics of a question whose right option contradicts an old one, 0 to 1."""

TEXT_LOSS = "text_loss"
"""The metric of a piece of text, in nats per token."""

_MOST_NATS = 20.0
"""Above what any text costs a model that was ever trained."""
_BOUNDS = {TEXT_LOSS: (0.0, _MOST_NATS)}


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
    suite: str = CORE

    @property
    def key(self) -> tuple[int, str, str, str, int, str, str]:
        """Which item this is, the same at every stage."""
        return (
            *(self.fact, self.relation, self.split),
            *(self.prompts, self.prompt_index, self.language, self.suite),
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
    low: float | None
    high: float | None


def outcome_of(
    item: Item,
    *,
    log_probabilities: Floats,
    num_option_tokens: npt.NDArray[np.int64],
    generated: str | None,
) -> Outcome:
    """The metrics of one item from its options' log-probabilities, both (num_options,).

    A piece of text has one option: its own tokens but the first. An item with an old option has
    ``CONFLICT_METRICS`` too.
    """
    if item.tokens:
        loss = -float(log_probabilities[0]) / float(num_option_tokens[0])
        return _outcome(item, values={TEXT_LOSS: min(loss, _MOST_NATS)})
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
    if item.old is not None:
        values |= _against_old(log_probabilities, gold=item.gold, old=item.old)
    if generated is not None:
        values["generation_exact"] = float(generation_exact(generated, gold))
        values["generation_contains"] = float(generation_contains(generated, gold))
    chosen = item.options[int(log_probabilities.argmax())]
    return _outcome(item, values=values, gold=gold, chosen=chosen, generated=generated)


def _against_old(log_probabilities: Floats, *, gold: int, old: int) -> dict[str, float]:
    """``CONFLICT_METRICS`` of the options' log-probabilities, (num_options,)."""
    masses = np.exp(log_probabilities - log_probabilities.max())
    prefers_old = _wins(log_probabilities, old)
    return {
        "old_probability": float(np.exp(log_probabilities[old])),
        "old_share": float(masses[old] / masses.sum()),
        "prefers_old": prefers_old,
        "prefers_neither": 1.0 - prefers_old - _wins(log_probabilities, gold),
        "new_over_old": float(log_probabilities[gold] > log_probabilities[old]),
    }


def _outcome(
    item: Item,
    *,
    values: Mapping[str, float],
    gold: str = "",
    chosen: str = "",
    generated: str | None = None,
) -> Outcome:
    return Outcome(
        *(item.fact, item.relation, item.split, item.prompts, item.prompt_index, item.language),
        gold=gold,
        chosen=chosen,
        values=values,
        generated=generated,
        suite=item.suite,
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
    bootstrap_samples: int = 10_000,
) -> tuple[ResultRow, ...]:
    """A row per suite, relation (and for all, where there are several), split, prompts, metric."""
    rows = []
    suites = dict.fromkeys(outcome.suite for outcome in outcomes)
    for suite, (relation, split, prompts, language, group) in (
        (suite, group)
        for suite in suites
        for group in _groups([outcome for outcome in outcomes if outcome.suite == suite])
    ):
        for metric in (*METRICS, *CONFLICT_METRICS, TEXT_LOSS):
            if not any(metric in outcome.values for outcome in group):
                continue
            values, facts = _measured(group, metric)
            low, high = bootstrap_interval(
                values,
                facts=facts,
                num_samples=bootstrap_samples,
                seed=seed,
                bounds=_BOUNDS.get(metric, (0.0, 1.0)),
            )
            rows.append(
                ResultRow(
                    *(relation, stage, epoch, seed, suite, split, prompts, language, metric),
                    value=float(values.mean()),
                    count=len(values),
                    low=low,
                    high=high,
                )
            )
    return tuple(rows)


def paired_difference(
    outcomes_a: Sequence[Outcome],
    outcomes_b: Sequence[Outcome],
    *,
    metric: str,
    seed: int,
    bootstrap_samples: int = 10_000,
) -> tuple[float, float, float]:
    """Mean of b - a over the same items, and its 95 % interval, resampling facts in pairs.

    Differences lie in -1 to 1, and the interval does too. Raises DataError where the two do not
    hold the same items, or none that has the metric.
    """
    differences, facts = _differences(outcomes_a, outcomes_b, metric=metric)
    _, most = _BOUNDS.get(metric, (0.0, 1.0))
    low, high = bootstrap_interval(
        differences, facts=facts, num_samples=bootstrap_samples, seed=seed, bounds=(-most, most)
    )
    return float(differences.mean()), low, high


def mean_over_seeds(
    outcomes: Mapping[int, Sequence[Outcome]],
    *,
    metric: str,
    seed: int,
    bootstrap_samples: int = 10_000,
) -> tuple[float, float, float]:
    """Mean over the items of all training seeds, and its 95 % interval over seeds and facts.

    ``outcomes`` by training seed, of one group of items each; ``seed`` is the bootstrap's. What
    the interval means with few seeds stands at ``crossed_interval``. Raises DataError where there
    are fewer than two seeds, or one without the metric.
    """
    return _over_seeds(
        {key: _measured(of_seed, metric) for key, of_seed in outcomes.items()},
        num_samples=bootstrap_samples,
        seed=seed,
        bounds=_BOUNDS.get(metric, (0.0, 1.0)),
    )


def paired_difference_over_seeds(
    outcomes_a: Mapping[int, Sequence[Outcome]],
    outcomes_b: Mapping[int, Sequence[Outcome]],
    *,
    metric: str,
    seed: int,
    bootstrap_samples: int = 10_000,
) -> tuple[float, float, float]:
    """Mean of b - a over the same items of the same training seeds, and its 95 % interval.

    The difference is taken within a seed and item, so what both methods owe to a seed or a fact
    cancels; seeds and facts are then both a sample, as in ``mean_over_seeds``. Raises DataError
    where the two do not hold the same seeds and items, at least two seeds, and the metric.
    """
    if outcomes_a.keys() != outcomes_b.keys():
        raise DataError(
            f"seeds {sorted(outcomes_a)} and {sorted(outcomes_b)} differ; "
            "compare methods over the same seeds"
        )
    _, most = _BOUNDS.get(metric, (0.0, 1.0))
    return _over_seeds(
        {key: _differences(outcomes_a[key], outcomes_b[key], metric=metric) for key in outcomes_a},
        num_samples=bootstrap_samples,
        seed=seed,
        bounds=(-most, most),
    )


_Measured = tuple[Floats, npt.NDArray[np.int64]]
"""Values and the facts that they are of, both (num_items,)."""


def _measured(outcomes: Sequence[Outcome], metric: str) -> _Measured:
    chosen = [outcome for outcome in outcomes if metric in outcome.values]
    if not chosen:
        raise DataError(f"no item has the metric {metric!r}; metrics are: {', '.join(METRICS)}")
    values = np.array([outcome.values[metric] for outcome in chosen])
    return values, np.array([outcome.fact for outcome in chosen])


def _differences(
    outcomes_a: Sequence[Outcome], outcomes_b: Sequence[Outcome], *, metric: str
) -> _Measured:
    """b - a of each item; DataError as ``paired_difference`` says."""
    a = {outcome.key: outcome for outcome in outcomes_a}
    b = {outcome.key: outcome for outcome in outcomes_b}
    unpaired = sorted(a.keys() ^ b.keys())
    if unpaired:
        raise DataError(
            f"{len(unpaired)} items are in one of the two evaluations only, such as {unpaired[0]}; "
            "compare evaluations of one sample (same seed, facts and evaluation spec)"
        )
    both = [key for key in a if metric in a[key].values and metric in b[key].values]
    of_a, facts = _measured([a[key] for key in both], metric)
    of_b, _ = _measured([b[key] for key in both], metric)
    return of_b - of_a, facts


def _over_seeds(
    measured: Mapping[int, _Measured], *, num_samples: int, seed: int, bounds: tuple[float, float]
) -> tuple[float, float, float]:
    """The mean of all values, and its interval over the seeds, which are the keys, and facts."""
    if len(measured) < 2:
        raise DataError(f"{len(measured)} seeds: an interval over seeds takes two or more")
    values = np.concatenate([values for values, _ in measured.values()])
    low, high = crossed_interval(
        values,
        facts=np.concatenate([facts for _, facts in measured.values()]),
        seeds=np.repeat(list(measured), [len(values) for values, _ in measured.values()]),
        num_samples=num_samples,
        seed=seed,
        bounds=bounds,
    )
    return float(values.mean()), low, high


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
            for prompts in KINDS:
                for language in languages:
                    key = (split, prompts, language)
                    group = [o for o in of_relation if (o.split, o.prompts, o.language) == key]
                    if group:
                        yield name, split, prompts, language, group
