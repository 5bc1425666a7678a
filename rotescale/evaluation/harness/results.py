"""From what the harness made of the answers to outcomes, and to rows with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rotescale.evaluation.intervals import bootstrap_interval, t_quantile
from rotescale.evaluation.metrics import Outcome, ResultRow
from rotescale.spec import BASE_LANGUAGE

HARNESS = "harness"
"""The suite of the harness's tasks."""

PROMPTS = "benchmark"
"""The kind of prompts of its rows."""

_RESAMPLINGS = 1000
"""Of a metric that is no mean, which the harness's own code makes of each."""

_SLOW = ("bleu", "chrf", "chrf++", "ter")
_SLOW_RESAMPLINGS = 100


@dataclass(frozen=True)
class Scored:
    """One metric of one task, by document."""

    task: str
    metric: str
    """With the filter that the answers went through, where it is not the default one."""
    value: float
    """What the harness makes of all documents."""
    documents: Sequence[int]
    parts: Sequence[Any]
    """What each document adds."""
    aggregate: Callable[[list[Any]], float]
    """Makes the value out of them."""
    is_mean: bool

    @property
    def is_fraction(self) -> bool:
        """Whether it is a mean of values from 0 to 1."""
        return self.is_mean and all(
            isinstance(part, int | float | np.number | np.bool_) and 0 <= part <= 1
            for part in self.parts
        )


@dataclass(frozen=True)
class Measured:
    """What a stage's tasks came to."""

    scored: tuple[Scored, ...]
    groups: Mapping[tuple[str, str], tuple[float, int]]
    """(Group, metric) -> the harness's value over its tasks, and the number of documents."""
    answers: Mapping[tuple[str, int], tuple[str, str | None]]
    """(Task, document) -> the right answer, and what was generated where anything was."""

    def outcomes(self) -> list[Outcome]:
        """One of each document, with its metrics that are fractions."""
        values: dict[tuple[str, int], dict[str, float]] = {key: {} for key in self.answers}
        for one in self.scored:
            if one.is_fraction:
                for document, part in zip(one.documents, one.parts, strict=True):
                    values[one.task, document][one.metric] = float(part)
        return [
            Outcome(
                *(document, task, "held_out", PROMPTS, 0, BASE_LANGUAGE),
                gold=self.answers[task, document][0],
                chosen="",
                values=of_document,
                generated=self.answers[task, document][1],
                suite=HARNESS,
            )
            for (task, document), of_document in values.items()
        ]


def measured(results: Mapping[str, Any], tasks: Mapping[str, Any]) -> Measured:
    """What the harness's ``evaluate`` returned, with its samples, of these tasks."""
    scored: list[Scored] = []
    answers: dict[tuple[str, int], tuple[str, str | None]] = {}
    for name, samples in results["samples"].items():
        scored += _scored(name, samples, results["results"][name], tasks[name])
        for sample in samples:
            key = (name, int(sample["doc_id"]))
            answers.setdefault(key, (str(sample["target"]), _generated(sample)))
    groups = {
        (name, _metric(*key.split(",", 1))): (float(value), int(found["sample_len"]))
        for name, found in results.get("groups", {}).items()
        for key, value in found.items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }
    return Measured(tuple(scored), groups, answers)


def rows_of(
    found: Measured, *, stage: str, epoch: int | None, seed: int, bootstrap_samples: int
) -> list[ResultRow]:
    """A row per task and metric, and per group and metric without an interval."""
    where: dict[str, Any] = {
        **{"stage": stage, "epoch": epoch, "seed": seed, "suite": HARNESS},
        **{"split": "held_out", "prompts": PROMPTS, "language": BASE_LANGUAGE},
    }
    rows = []
    for one in found.scored:
        low, high = _interval(one, seed=seed, bootstrap_samples=bootstrap_samples)
        what: dict[str, Any] = {"relation": one.task, "metric": one.metric, "count": len(one.parts)}
        rows.append(ResultRow(**where, **what, value=one.value, low=low, high=high))
    for (group, metric), (value, count) in found.groups.items():
        what = {"relation": group, "metric": metric, "count": count}
        rows.append(ResultRow(**where, **what, value=value, low=None, high=None))
    return [row for row in rows if math.isfinite(row.value)]


def _scored(
    name: str, samples: Sequence[Mapping[str, Any]], values: Mapping[str, Any], task: Any
) -> list[Scored]:
    by_metric: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            by_metric.setdefault((metric, sample["filter"]), []).append(sample)
    scored = []
    for (metric, filter_name), of_metric in by_metric.items():
        value = values.get(f"{metric},{filter_name}")
        if not isinstance(value, int | float | np.number):
            continue
        aggregate = task.aggregation().get(metric, np.mean)
        scored.append(
            Scored(
                *(name, _metric(metric, filter_name), float(value)),
                documents=[int(sample["doc_id"]) for sample in of_metric],
                parts=[sample[metric] for sample in of_metric],
                aggregate=aggregate,
                is_mean=getattr(aggregate, "__name__", "") == "mean",
            )
        )
    return scored


def _metric(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _generated(sample: Mapping[str, Any]) -> str | None:
    answer = sample["filtered_resps"][0]
    return answer if isinstance(answer, str) else None


def _interval(
    one: Scored, *, seed: int, bootstrap_samples: int
) -> tuple[float, float] | tuple[None, None]:
    """95 % over documents: as of our own metrics; of others by t, or by the percentiles."""
    if one.is_fraction:
        return bootstrap_interval(
            np.array(one.parts, dtype=np.float64),
            facts=np.array(one.documents),
            num_samples=bootstrap_samples,
            seed=seed,
        )
    num = len(one.parts)
    if num < 2:
        return None, None
    if one.is_mean:
        margin = t_quantile(num - 1) * float(np.std(one.parts, ddof=1)) / math.sqrt(num)
        return one.value - margin, one.value + margin
    generator = np.random.default_rng((seed, num))
    times = _SLOW_RESAMPLINGS if one.metric.startswith(_SLOW) else _RESAMPLINGS
    draws = [
        one.aggregate([one.parts[place] for place in generator.integers(num, size=num)])
        for _ in range(min(times, bootstrap_samples))
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return (float(low), float(high)) if math.isfinite(low + high) else (None, None)
