"""Values of a group of cells with their intervals, and differences between two, paired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from rotescale.analysis.report.material import Cell, Group, Stage
from rotescale.errors import DataError
from rotescale.evaluation.intervals import interval_over_seeds
from rotescale.evaluation.items import CORE
from rotescale.evaluation.metrics import (
    Outcome,
    mean_over_seeds,
    paired_difference,
    paired_difference_over_seeds,
)
from rotescale.evaluation.similarity import BOUNDS
from rotescale.evaluation.similarity import SUITE as REPRESENTATIONS
from rotescale.records import ALL_RELATIONS, EvaluationRow
from rotescale.spec import BASE_LANGUAGE

OWN = ""
"""The relation of a group: all that its suite asks about together, or the only one."""

_BOOTSTRAP_SEED = 0


@dataclass(frozen=True, slots=True)
class What:
    """Which value: all that a row says but when it was measured."""

    relation: str
    """One of them, ``all``, or ``OWN``."""
    prompts: str
    split: str = "held_out"
    suite: str = CORE
    language: str = BASE_LANGUAGE
    metric: str = "multiple_choice"
    layer: int | None = None

    @property
    def role(self) -> tuple[str | int | None, ...]:
        """As ``Cell.row`` wants it."""
        return (
            *(self.suite, self.relation, self.split, self.prompts),
            *(self.language, self.metric, self.layer),
        )

    def among(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """The outcomes that the value is a mean of."""
        wanted = (self.suite, self.split, self.prompts, self.language)
        return [
            one
            for one in outcomes
            if (one.suite, one.split, one.prompts, one.language) == wanted
            and self.relation in (ALL_RELATIONS, one.relation)
            and self.metric in one.values
        ]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, its 95 % interval where there is one, and what it is a mean of."""

    value: float
    low: float | None
    high: float | None
    count: int
    """Questions, or pairs of them, over all seeds."""
    num_facts: int
    """0 where it is not known."""
    seeds: tuple[int, ...]


_ESTIMATES: WeakKeyDictionary[Group, dict[tuple[Stage, What], Estimate | None]]
_ESTIMATES = WeakKeyDictionary()
"""Tables, figures and sentences ask for the same values."""


def estimate(group: Group, stage: Stage, what: What) -> Estimate | None:
    """The mean over the seeds that were measured there; None where none was."""
    known = _ESTIMATES.setdefault(group, {})
    if (stage, what) not in known:
        known[stage, what] = _estimate(group, stage, what)
    return known[stage, what]


def of_group(what: What, group: Group) -> What:
    """With the group's relation where it says ``OWN``."""
    return replace(what, relation=group.relation(what.suite)) if what.relation == OWN else what


def _estimate(group: Group, stage: Stage, what: What) -> Estimate | None:
    what = of_group(what, group)
    rows = {cell: row for cell in group.cells if (row := cell.row(stage, what.role)) is not None}
    if not rows:
        return None
    outcomes = {cell: what.among(cell.outcomes(stage)) for cell in rows}
    facts = {outcome.fact for found in outcomes.values() for outcome in found}
    found = list(rows.values())
    first = Estimate(
        value=sum(row.value for row in found) / len(found),
        low=found[0].low,
        high=found[0].high,
        count=sum(row.count for row in found),
        num_facts=len(facts),
        seeds=tuple(cell.spec.seed for cell in rows),
    )
    if len(found) == 1:
        return first
    if what.suite == REPRESENTATIONS:
        low, high = _states_interval(what, found)
        return replace(first, low=low, high=high)
    if not all(outcomes.values()):
        return replace(first, low=None, high=None)
    value, low, high = mean_over_seeds(
        {cell.spec.seed: outcomes[cell] for cell in rows},
        metric=what.metric,
        seed=_BOOTSTRAP_SEED,
        bootstrap_samples=group.first.spec.evaluation.bootstrap_samples,
    )
    return replace(first, value=value, low=low, high=high)


def _states_interval(
    what: What, rows: Sequence[EvaluationRow]
) -> tuple[float, float] | tuple[None, None]:
    """Of hidden states there are no outcomes: out of the rows and their own intervals.

    (None, None) where a run has none of its own.
    """
    known = [(row.low, row.high) for row in rows if row.low is not None and row.high is not None]
    if len(known) < len(rows):
        return None, None
    values = [row.value for row in rows]
    return interval_over_seeds(values, known, bounds=BOUNDS[what.metric])


def difference(
    before: tuple[Group, Stage],
    after: tuple[Group, Stage],
    what: What,
    *,
    splits: tuple[str, str] | None = None,
) -> Estimate | None:
    """After - before over the questions that both were asked, paired by seed and fact.

    ``splits``: before's and after's, where they are not both that of ``what``. None where the two
    share no seed or no question.
    """
    pairs = _pairs(before, after, what, splits)
    if not pairs:
        return None
    a = {seed: pair[0] for seed, pair in pairs.items()}
    b = {seed: pair[1] for seed, pair in pairs.items()}
    samples = before[0].first.spec.evaluation.bootstrap_samples
    seed, *others = pairs
    if others:
        found = paired_difference_over_seeds(
            a, b, metric=what.metric, seed=_BOOTSTRAP_SEED, bootstrap_samples=samples
        )
    else:
        found = paired_difference(
            a[seed],
            b[seed],
            metric=what.metric,
            seed=_BOOTSTRAP_SEED,
            bootstrap_samples=samples,
        )
    facts = {outcome.fact for outcomes in a.values() for outcome in outcomes}
    count = sum(len(outcomes) for outcomes in a.values())
    return Estimate(*found, count=count, num_facts=len(facts), seeds=tuple(pairs))


def are_paired(
    before: tuple[Group, Stage],
    after: tuple[Group, Stage],
    what: What,
    *,
    splits: tuple[str, str] | None = None,
) -> bool:
    """Whether there is such a difference."""
    return bool(_pairs(before, after, what, splits))


_Pair = tuple[list[Outcome], list[Outcome]]


def _pairs(
    before: tuple[Group, Stage],
    after: tuple[Group, Stage],
    what: What,
    splits: tuple[str, str] | None,
) -> dict[int, _Pair]:
    """Seed -> what both said to the same questions, the split being that of ``what``."""
    of_before, of_after = splits or (what.split, what.split)
    pairs: dict[int, _Pair] = {}
    later = {cell.spec.seed: cell for cell in after[0].cells}
    for cell in before[0].cells:
        if cell.spec.seed not in later:
            continue
        of_a = _keyed(cell, before[1], of_group(what, before[0]), split=of_before)
        of_b = _keyed(later[cell.spec.seed], after[1], of_group(what, after[0]), split=of_after)
        both = [key for key in of_a if key in of_b]
        if both:
            pairs[cell.spec.seed] = ([of_a[k] for k in both], [of_b[k] for k in both])
    return pairs


def _keyed(cell: Cell, stage: Stage, what: What, *, split: str) -> Mapping[object, Outcome]:
    """Outcomes of a split by their items, which are called items of ``what``'s split."""
    found = replace(what, split=split).among(cell.outcomes(stage))
    called = (replace(outcome, split=what.split) for outcome in found)
    return {outcome.key: outcome for outcome in called}


def shared_axes(groups: Sequence[Group], of: Callable[[Group], object]) -> set[str]:
    """The axes that set the value: whose labels have no value in common."""
    found: set[str] = set()
    for axis in {axis for group in groups for axis in group.labels}:
        values: dict[str, set[object]] = {}
        for group in groups:
            if axis in group.labels:
                values.setdefault(group.labels[axis], set()).add(of(group))
        apart = [one.isdisjoint(two) for one in values.values() for two in values.values()]
        # Each label meets itself once.
        if len(values) > 1 and apart.count(False) == len(values):
            found.add(axis)
    return found


def scope(groups: Sequence[Group], stage: Stage | None, what: What, *, unit: str = "facts") -> str:
    """Of how many facts and seeds, and what the intervals are about, in words.

    ``stage`` None: the end of training.
    """
    found = [estimate(group, stage or group.first.end, what) for group in groups]
    known = [one for one in found if one is not None]
    if not known:
        raise DataError(f"nothing was measured of {what}")
    facts = sorted({one.num_facts for one in known if one.num_facts})
    kind = f"{what.split.replace('_', '-')} facts" if unit == "facts" else unit
    told = f"{_range(facts)} {kind}, " if facts else ""
    seeds = sorted({len(one.seeds) for one in known})
    over = f"{unit} and seeds" if seeds[0] > 1 else unit
    noun = "seed" if seeds == [1] else "seeds"
    text = f"{told}{_range(seeds)} {noun}, 95 % intervals over {over}"
    if seeds[0] == 1:
        text += ", which say nothing about other seeds"
        if seeds[-1] > 1:
            text += " where there is one"
    return text


def _range(numbers: Sequence[int]) -> str:
    if not numbers:
        return "0"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
