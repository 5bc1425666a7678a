"""What sections of the report share: which settings a figure shows, and values by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

from rotescale.analysis.report.estimates import (
    OWN,
    Estimate,
    What,
    difference,
    estimate,
    shared_axes,
)
from rotescale.analysis.report.figures import MOST_LINES, Axis, Line, Point, lines_picture
from rotescale.analysis.report.material import Group, Material, Stage
from rotescale.analysis.report.page import Content, Html, Number, Picture, Section, number, table
from rotescale.analysis.results import HEADINGS
from rotescale.analysis.study_table import Cost
from rotescale.evaluation.items import CORE, SPLITS
from rotescale.study.spec import METHOD

_Place = TypeVar("_Place")

Maker = Callable[[Material], "Section | str"]
"""Makes a section; a sentence instead where nothing of it was measured, saying what would be."""

MAIN_KINDS = ("key_token", "train", "test")
CONTROL_KINDS = ("unrelated", "wrong_relation", "reversed")
MOST_FIGURES = 4
STYLES = {
    **{"key_token": 0, "train": 1, "test": 2},
    **{"unrelated": 3, "wrong_relation": 4, "reversed": 7},
}
"""The look of each kind of prompts of the core, the same in all figures."""
ACCURACY = Axis("multiple-choice accuracy", unit=True)


def shown(groups: Sequence[Group]) -> list[Group]:
    """The settings that get figures: all of a few; of many, each method's last and first."""
    if len(groups) <= MOST_FIGURES:
        return list(groups)
    methods = dict.fromkeys(group.method for group in groups)
    by_method = [[group for group in groups if group.method == method] for method in methods]
    order = dict.fromkeys([of[-1] for of in by_method] + [of[0] for of in by_method])
    kept = list(order)[:MOST_FIGURES]
    return [group for group in groups if group in kept]


def which(groups: Sequence[Group]) -> str:
    """Says which settings the figures are of, where they are not of all."""
    found = shown(groups)
    if len(found) == len(groups):
        return ""
    return (
        f" Figures show {len(found)} of {len(groups)} settings, chosen by their place in the study "
        "and not by their results; the table has all."
    )


def stage_name(stage: Stage) -> str:
    """Such as ``memorize, epoch 3``."""
    name, epoch = stage
    return name if epoch is None else f"{name}, epoch {epoch}"


def ends(groups: Iterable[Group]) -> list[Stage]:
    """The untrained model and the ends of phases, as they come in the groups."""
    stages = (stage for group in groups for stage in group.stages())
    return list(dict.fromkeys(stage for stage in stages if stage[1] is None))


def measured(
    stages: Iterable[Stage], groups: Sequence[Group], whats: Sequence[What]
) -> list[Stage]:
    """The stages at which any group measured any of that."""
    return [s for s in stages if any(estimate(g, s, what) for g in groups for what in whats)]


def having(groups: Iterable[Group], what: What) -> list[Group]:
    """The groups that measured it at the end of training."""
    return [group for group in groups if estimate(group, group.first.end, what) is not None]


def place_headings(material: Material, *, relation: bool = True) -> list[str]:
    """The first columns of a table: setting and relation, where there are several."""
    several = ["setting"] if len(material.groups) > 1 else []
    return [*several, *(["relation"] if relation and len(material.relations) > 1 else [])]


def placed(material: Material, group: Group, relation: str | None = None) -> list[Content]:
    """The cells of these columns."""
    several: list[Content] = [group.name] if len(material.groups) > 1 else []
    if relation is not None and len(material.relations) > 1:
        several.append(relation)
    return several


def stages_picture(
    name: str,
    title: str,
    group: Group,
    whats: Sequence[tuple[str, What]],
    *,
    y: Axis = ACCURACY,
    among: int | None = None,
    by_kind: bool = True,
) -> Picture | None:
    """A line per value along the ends of phases; None where fewer than two were measured.

    ``by_kind``: lines of the core look as their kind of prompts does in all figures.
    """
    stages = measured(ends([group]), [group], [what for _, what in whats])
    if len(stages) < 2:
        return None
    lines = []
    for label, what in whats[:MOST_LINES]:
        found = [(place, estimate(group, stage, what)) for place, stage in enumerate(stages)]
        points = tuple(point(place, one) for place, one in found if one is not None)
        if points:
            style = STYLES.get(what.prompts) if by_kind and what.suite == CORE else None
            lines.append(Line(label, points, style))
    ticks = tuple(stage_name(stage) for stage in stages)
    return lines_picture(
        name, title, lines, x=Axis("measured after", ticks=ticks), y=y, among=among
    )


def point(x: float, found: Estimate) -> Point:
    """An estimate at a place."""
    return Point(x, found.value, found.low, found.high)


def stages_table(
    material: Material, caption: str, kinds: Sequence[str], stages: Sequence[Stage]
) -> Html:
    """Accuracy of each setting, relation, split and kind of prompts, a column per stage."""
    rows: list[list[Content]] = []
    for group in material.groups:
        for relation in material.relations:
            for split in SPLITS:
                for kind in kinds:
                    what = What(relation, kind, split=split)
                    found = [estimate(group, stage, what) for stage in stages]
                    if not any(found):
                        continue
                    start = [*placed(material, group, relation), split.replace("_", "-")]
                    counts = [counted(found), _seeds(found)]
                    rows.append([*start, HEADINGS[kind], *counts, *map(number, found)])
    headings = [*place_headings(material), "facts", "asked with", "n", "seeds"]
    return table(caption, [*headings, *map(stage_name, stages)], rows)


def counted(found: Sequence[Estimate | None]) -> Content:
    """Questions at a stage; one number for each, such as ``80, 80, 30``, where they differ."""
    counts = [one.count for one in found if one is not None]
    if len(set(counts)) == 1:
        return counts[0]
    return ", ".join("-" if one is None else str(one.count) for one in found)


def _seeds(found: Sequence[Estimate | None]) -> int:
    """Seeds of the last stage that was measured."""
    return len([one for one in found if one is not None][-1].seeds)


def changes_table(material: Material, kinds: Sequence[str]) -> Html | None:
    """What changed from the end of one phase to the next, paired by fact; None where nothing did.

    A question counts where it was asked at both ends, so facts are those held out at both.
    """
    rows: list[list[Content]] = []
    for group in material.groups:
        stages = ends([group])
        for before, after in pairwise(stages):
            for kind in kinds:
                what = What(OWN, kind)
                found = difference((group, before), (group, after), what)
                if found is not None:
                    change = f"{stage_name(before)} → {stage_name(after)}"
                    end: list[Content] = [change, HEADINGS[kind], found.num_facts]
                    rows.append([*placed(material, group), *end, number(found, signed=True)])
    if not rows:
        return None
    headings = [*place_headings(material, relation=False), "stages", "asked with", "facts"]
    return table(
        "Change of accuracy on held-out facts, paired by fact and seed", [*headings, "change"], rows
    )


def settings_of(group: Group) -> tuple[Content, ...]:
    """Phase-1 epochs, k, p and phase-2 epochs, as cells."""
    memorize, generalize = group.first.memorize, group.first.generalize
    if generalize is None:
        return (None if memorize is None else memorize.epochs, None, None, None)
    told = generalize.facts_per_relation
    k = Number(None, "all") if told is None else told
    epochs = None if memorize is None else memorize.epochs
    return (epochs, k, generalize.num_prompts, generalize.epochs)


def rest_name(group: Group, without: Iterable[str]) -> str:
    """The labels of a group but those of some axes; empty where none are left."""
    left = {axis: label for axis, label in group.labels.items() if axis not in set(without)}
    return ", ".join(v if a == METHOD else f"{a} {v}" for a, v in left.items())


def curves(
    groups: Iterable[Group], of: Callable[[Group], _Place], *more: Callable[[Group], object]
) -> dict[str, dict[_Place, Group]]:
    """Settings by their place in a figure, a figure or line for each setting of everything else.

    An axis that sets the place, or what ``more`` gives, is no part of the rest; a method always is.
    """
    kept = list(groups)
    axes = {axis for one in (of, *more) for axis in shared_axes(kept, one)} - {METHOD}
    found: dict[str, dict[_Place, Group]] = {}
    for group in kept:
        on_it = found.setdefault(rest_name(group, axes), {})
        place = of(group)
        assert place not in on_it, f"{on_it[place].name} and {group.name} at {place} of one figure"
        on_it[place] = group
    return found


def comparable(one: Group, two: Group) -> bool:
    """Whether they are two methods at the same point of every axis that both have."""
    shared = (one.labels.keys() & two.labels.keys()) - {METHOD}
    return one.method != two.method and all(one.labels[a] == two.labels[a] for a in shared)


def mean_cost(group: Group, phase: str | None = None) -> Cost:
    """Of one phase or all of them, the mean over seeds."""
    return mean_of([c.cost if phase is None else c.cost_of(phase) for c in group.cells])


def mean_of(costs: Sequence[Cost]) -> Cost:
    """The mean of what several seeds took."""
    total = sum(costs, Cost())
    return Cost(
        round(total.num_tokens / len(costs)),
        round(total.target_tokens / len(costs)),
        total.seconds / len(costs),
    )
