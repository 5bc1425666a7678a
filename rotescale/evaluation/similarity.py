"""What hidden states have in common: cosines of one fact's states, and ΔCosSim of relations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rotescale.evaluation.intervals import bootstrap_interval, t_quantile
from rotescale.evaluation.states import StateText
from rotescale.records import ALL_RELATIONS, EvaluationRow

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

SUITE = "representations"
DELTA = "delta_cosine"
"""ΔCosSim: the mean cosine within a relation less that between relations."""
COSINE = "cosine"
"""Of a fact's state at the key token and its states at prompts of a kind."""

BOUNDS = {DELTA: (-2.0, 2.0), COSINE: (-1.0, 1.0)}
"""The least and the greatest value of each metric."""

_EPSILON = 1e-8
"""The least product of norms by which a cosine is divided, as in torch's ``cosine_similarity``."""


@dataclass(frozen=True, slots=True)
class Difference:
    """ΔCosSim of some states, and its 95 % interval; None where too few facts tell it."""

    value: float
    interval: tuple[float, float] | None


def unit_states(states: npt.NDArray[np.floating[Any]]) -> Floats:
    """States (num_states, hidden) of length 1, float64; a state of zeros stays one.

    So a cosine is a product, and that with zeros is 0.
    """
    exact = states.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    return np.asarray(exact / np.maximum(norms, _EPSILON), dtype=np.float64)


def delta_cosine(states: Floats, *, facts: Labels, relations: Labels) -> Difference | None:
    """ΔCosSim of unit states (num_states, hidden), each of a fact, whose relation is given.

    The mean cosine over all pairs of states of two facts of one relation, less that over all pairs
    of states of facts of two relations. States of one fact are never paired. None where there are
    no two facts of one relation, or no two relations.

    The interval is about other facts of the same relations. A fact is in many pairs, on both
    sides, so the mean of the facts' own differences would seem twice as certain as it is; the
    variance is the jackknife's of a U-statistic (Arvesen 1969, "Jackknifing U-Statistics"), facts
    deleted one by one within their relation, with Student's t of as many degrees of freedom as
    there are facts less relations. None where a relation has one fact only.
    """
    sums = _sums(states, facts=facts, relations=relations)
    value = sums.difference()
    if not math.isfinite(value):
        return None
    deleted = sums.without_each()
    variance = 0.0
    for relation in range(int(sums.relation_of.max()) + 1):
        values = deleted[sums.relation_of == relation]
        if len(values) < 2 or not np.isfinite(values).all():
            return Difference(value, None)
        variance += float(values.var()) * (len(values) - 1)
    freedom = len(sums.relation_of) - int(sums.relation_of.max()) - 1
    half = t_quantile(freedom) * math.sqrt(variance)
    low, high = BOUNDS[DELTA]
    return Difference(value, (max(low, value - half), min(high, value + half)))


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums of unit states, out of which sums over pairs follow: Σ u·v = |Σ u|² - Σ |u|²."""

    of_facts: Floats
    """(num_facts, hidden)"""
    of_relations: Floats
    """(num_relations, hidden)"""
    counts: Labels
    """(num_facts,): states of each fact"""
    relation_of: Labels
    """(num_facts,): each fact's relation, from 0"""

    @property
    def _relation_counts(self) -> Labels:
        return np.bincount(self.relation_of, weights=self.counts).astype(np.int64)

    def _pairs(self) -> tuple[float, float, float, float]:
        """Cosines over ordered pairs within relations and between, and both numbers of pairs."""
        within = float((self.of_relations**2).sum() - (self.of_facts**2).sum())
        between = float((self.of_relations.sum(axis=0) ** 2).sum() - (self.of_relations**2).sum())
        sizes = self._relation_counts
        num_within = float((sizes**2).sum() - (self.counts**2).sum())
        num_between = float(sizes.sum() ** 2 - (sizes**2).sum())
        return within, between, num_within, num_between

    def difference(self) -> float:
        """ΔCosSim; NaN where there are no pairs of a kind."""
        within, between, num_within, num_between = self._pairs()
        if not num_within or not num_between:
            return math.nan
        return within / num_within - between / num_between

    def without_each(self) -> Floats:
        """ΔCosSim without the states of each fact in turn, (num_facts,)."""
        within, between, num_within, num_between = self._pairs()
        own = self.of_relations[self.relation_of]
        squares = (self.of_facts**2).sum(axis=1)
        to_own = (own * self.of_facts).sum(axis=1)
        to_others = self.of_facts @ self.of_relations.sum(axis=0) - to_own
        sizes = self._relation_counts
        own_size = sizes[self.relation_of]
        with np.errstate(divide="ignore", invalid="ignore"):
            left_within = (within - 2 * (to_own - squares)) / (
                num_within - 2 * self.counts * (own_size - self.counts)
            )
            left_between = (between - 2 * to_others) / (
                num_between - 2 * self.counts * (sizes.sum() - own_size)
            )
        return np.asarray(left_within - left_between, dtype=np.float64)


def _sums(states: Floats, *, facts: Labels, relations: Labels) -> _Sums:
    _, first, fact_of = np.unique(facts, return_index=True, return_inverse=True)
    _, relation_of = np.unique(relations[first], return_inverse=True)
    of_facts = np.zeros((len(first), states.shape[1]))
    np.add.at(of_facts, fact_of, states)
    of_relations = np.zeros((int(relation_of.max()) + 1, states.shape[1]))
    np.add.at(of_relations, relation_of, of_facts)
    return _Sums(of_facts, of_relations, np.bincount(fact_of), relation_of)


@dataclass(frozen=True, slots=True)
class Measuring:
    """Which stage's states are measured, and how."""

    stage: str
    epoch: int | None
    seed: int
    bootstrap_samples: int
    attempt: int = 0


def similarity_rows(
    states: npt.NDArray[np.floating[Any]],
    texts: Sequence[StateText],
    *,
    layer: int,
    measuring: Measuring,
) -> tuple[EvaluationRow, ...]:
    """The rows of one layer's states (num_texts, hidden), by split, kind of prompts and language.

    All relations together: ΔCosSim of the states of each kind, left out where it is not defined,
    and for prompts their cosine to the same fact's state at the key token, with its interval by
    bootstrap over facts.
    """
    relations = list(dict.fromkeys(text.relation for text in texts))
    units = unit_states(states)
    return tuple(
        EvaluationRow(
            attempt=measuring.attempt,
            relation=ALL_RELATIONS if len(relations) > 1 else relations[0],
            stage=measuring.stage,
            epoch=measuring.epoch,
            seed=measuring.seed,
            suite=SUITE,
            split=group.split,
            prompts=group.prompts,
            language=group.language,
            metric=value.metric,
            value=value.mean,
            count=value.count,
            low=None if value.interval is None else value.interval[0],
            high=None if value.interval is None else value.interval[1],
            layer=layer,
        )
        for group in _groups(texts)
        for value in _values(units, group, measuring=measuring)
    )


@dataclass(frozen=True, slots=True)
class _Value:
    metric: str
    mean: float
    count: int
    interval: tuple[float, float] | None


def _values(units: Floats, group: _Group, *, measuring: Measuring) -> Iterator[_Value]:
    """What is measured of a group's states; all relations' texts (num_texts, hidden) at hand."""
    delta = delta_cosine(units[group.places], facts=group.facts, relations=group.relations)
    if delta is not None:
        yield _Value(DELTA, delta.value, len(group.places), delta.interval)
    is_paired = group.keys >= 0
    if not is_paired.any():
        return
    products = units[group.keys[is_paired]] * units[group.places[is_paired]]
    cosines = products.sum(axis=1).clip(-1.0, 1.0)
    interval = bootstrap_interval(
        cosines,
        facts=group.facts[is_paired],
        num_samples=measuring.bootstrap_samples,
        seed=measuring.seed,
        bounds=BOUNDS[COSINE],
    )
    yield _Value(COSINE, float(cosines.mean()), len(cosines), interval)


@dataclass(frozen=True, slots=True)
class _Group:
    """The texts of one split, kind of prompts and language; all arrays (num_texts_of_it,) int64."""

    split: str
    prompts: str
    language: str
    places: Labels
    """Places among all texts."""
    facts: Labels
    relations: Labels
    """Each text's relation, by number."""
    keys: Labels
    """Place of the same fact's text with the key token; -1 where there is none, or this is it."""


def _groups(texts: Sequence[StateText]) -> Iterator[_Group]:
    """In the order of the texts."""
    keys = {text.fact: place for place, text in enumerate(texts) if text.prompts == "key_token"}
    numbers = {name: n for n, name in enumerate(dict.fromkeys(text.relation for text in texts))}
    found: dict[tuple[str, str, str], list[int]] = {}
    for place, text in enumerate(texts):
        found.setdefault((text.split, text.prompts, text.language), []).append(place)
    for (split, prompts, language), places in found.items():
        chosen = [texts[place] for place in places]
        of_keys = [-1 if prompts == "key_token" else keys.get(text.fact, -1) for text in chosen]
        yield _Group(
            *(split, prompts, language),
            places=np.array(places),
            facts=np.array([text.fact for text in chosen]),
            relations=np.array([numbers[text.relation] for text in chosen]),
            keys=np.array(of_keys),
        )
