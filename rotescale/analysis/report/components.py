"""Figures of the first two principal components of hidden states, and which states they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rotescale.analysis.report.figures import Line, Theme, render
from rotescale.analysis.report.material import BASE, Cell, Group, Stage, measuring
from rotescale.analysis.report.page import Picture
from rotescale.analysis.report.sections import stage_name
from rotescale.analysis.representations import (
    MOST_POINTS,
    Points,
    principal_components,
    run_points,
    sampled_points,
)
from rotescale.analysis.results import HEADINGS

_MARKERS = {"key_token": "D", "train": "o", "test": "s", "unrelated": "^"}


def components_pictures(
    groups: Sequence[Group], *, layer: int, split: str
) -> tuple[list[Picture], str]:
    """A picture of each end of a phase of the first group whose states are still there.

    Also a sentence on what they show; empty where there are none. Every stage has components of
    its own. Raises DataError where a file of states is damaged.
    """
    for group in groups:
        for cell in group.cells:
            points = _points(cell, layer=layer)
            pictures = [
                _picture(f"components-{place + 1}", one, layer=layer, split=split)
                for place, one in enumerate(points)
                if any(text.split == split for text in one.texts)
            ]
            if pictures:
                about = f"seed {cell.spec.seed}"
                about += f" of {group.name}" if len(groups) > 1 else ""
                return pictures, (
                    f" Principal components: states of length 1 at layer {layer}, {about}, up to "
                    f"{MOST_POINTS} of each relation and kind; every stage has components of its "
                    "own, so places are not compared across pictures. Points on the way of a phase "
                    "are drawn by `rotescale representations RUN`."
                )
    return [], ""


def _points(cell: Cell, *, layer: int) -> list[Points]:
    """The states of the untrained model and the ends of phases, where their files are there."""
    stages: list[Stage] = [BASE, *((phase.name, None) for phase in cell.spec.phases)]
    found = []
    for stage in stages:
        runs = measuring(cell.places, stage[0], end=cell.end[0])
        kept = next((run for run in runs if run.representations(*stage).exists()), None)
        if kept is not None:
            found += run_points({stage: kept}, layer=layer)
    return found


def _picture(name: str, points: Points, *, layer: int, split: str) -> Picture:
    shown, num_texts = sampled_points(points, split=split, most=MOST_POINTS)
    places, shares = principal_components(shown.states)
    groups = list(_groups(shown))
    relations = list(dict.fromkeys(relation for relation, _, _ in groups))
    kinds = [kind for kind in _MARKERS if any(kind == other for _, other, _ in groups)]

    def draw(axes: Any, theme: Theme) -> None:
        for relation, kind, chosen in groups:
            colour = _colour(theme, relations.index(relation))
            look = {"marker": _MARKERS[kind], "color": colour, "alpha": 0.75}
            axes.scatter(*places[chosen].T, s=22, linewidths=0, **look)
        for number, relation in enumerate(relations):
            axes.scatter([], [], color=_colour(theme, number), marker="o", label=relation)
        for kind in kinds:
            axes.scatter([], [], color=theme.soft, marker=_MARKERS[kind], label=HEADINGS[kind])
        axes.set_xlabel(f"component 1 ({shares[0]:.0%} of variance)")
        axes.set_ylabel(f"component 2 ({shares[1]:.0%})")

    title = f"Principal components: {stage_name(points.stage)}"
    means = "; ".join(
        f"{relation}, {HEADINGS[kind]}: {x:.2f}, {y:.2f}"
        for relation, kind, chosen in groups
        for x, y in [places[chosen].mean(axis=0)]
    )
    told = f"{len(shown.texts)} of {num_texts} states at layer {layer}, {shares.sum():.0%} of "
    told += f"their variance; mean places: {means}"
    legend = [Line(one, ()) for one in (*relations, *(HEADINGS[kind] for kind in kinds))]
    return render(name, title, draw, alt=f"{title}. {told}.", lines=legend)


def _groups(points: Points) -> Iterator[tuple[str, str, np.ndarray[Any, np.dtype[np.int64]]]]:
    """Relation, kind of prompts, and the places of their states (num_states_of_it,) int64."""
    found: dict[tuple[str, str], list[int]] = {}
    for place, text in enumerate(points.texts):
        found.setdefault((text.relation, text.prompts), []).append(place)
    for (relation, kind), places in found.items():
        yield relation, kind, np.array(places, dtype=np.int64)


def _colour(theme: Theme, number: int) -> str:
    """The first colour is that of the ink, which says nothing of a relation."""
    return theme.colours[1 + number % (len(theme.colours) - 1)]
