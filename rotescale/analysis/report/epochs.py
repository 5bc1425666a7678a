"""The section about phase-1 epochs: on the way of one schedule, and schedules run separately."""

from __future__ import annotations

from collections.abc import Sequence

from rotescale.analysis.report.estimates import OWN, What, estimate, scope
from rotescale.analysis.report.figures import MOST_LINES, Axis, Line, lines_picture
from rotescale.analysis.report.material import BASE, Cell, Group, Material, Stage
from rotescale.analysis.report.page import Picture, Section
from rotescale.analysis.report.sections import (
    ACCURACY,
    MAIN_KINDS,
    MOST_FIGURES,
    STYLES,
    curves,
    having,
    point,
)
from rotescale.analysis.results import HEADINGS


def epochs_section(material: Material) -> Section | str:
    """Accuracy over the epochs of phase 1: on the way of one schedule, and of separate runs."""
    pictures = [*_on_the_way(material), *_separate(material)]
    if not pictures:
        return (
            "Accuracy over phase-1 epochs: it takes measurements on the way "
            "(phases.0.evaluate_epochs) or a study with several numbers of epochs."
        )
    what = What(OWN, "test")
    groups = having(material.groups, what)
    return Section(
        "epochs",
        "Accuracy over phase-1 epochs",
        f"Test prompts at the end: {scope(groups, None, what) if groups else 'not asked'}. Points "
        "on the way share one schedule of learning rates; numbers of epochs that were run "
        "separately have a schedule each. The two are not the same curve.",
        (),
        tuple(pictures),
    )


def way_points(group: Group) -> list[tuple[int, Stage]]:
    """Epoch of phase 1 -> stage: untrained, on the way, and its end; few unless on the way."""
    memorize = group.first.memorize
    if memorize is None or memorize.epochs is None:
        return []
    stages = [s for s in group.stages() if s == BASE or s[0] == memorize.name]
    return [(0 if s == BASE else s[1] or memorize.epochs, s) for s in stages]


def on_the_way(material: Material) -> list[Group]:
    """The settings of figures that were measured on the way of phase 1, each way once."""
    seen: dict[tuple[str, ...], Group] = {}
    for group in material.groups:
        if any(stage[1] for _, stage in way_points(group)):
            ways = tuple(_first_phases(cell) for cell in group.cells)
            seen.setdefault(ways, group)
    return list(seen.values())[:MOST_FIGURES]


def _first_phases(cell: Cell) -> str:
    """What is the same where phase 1 and all before it are."""
    assert cell.memorize is not None
    return cell.spec.prefix_digest(cell.spec.phases.index(cell.memorize) + 1)


def way_title(group: Group, ways: Sequence[Group]) -> str:
    """What is drawn of a group; with its name where the number of epochs is not enough."""
    epochs = memorize_epochs(group)
    alike = sum(memorize_epochs(other) == epochs for other in ways) > 1
    title = f"On the way of phase 1, one schedule of {epochs} epochs"
    return f"{title} ({group.name})" if alike else title


def _on_the_way(material: Material) -> list[Picture]:
    pictures = []
    ways = on_the_way(material)
    for place, group in enumerate(ways):
        lines = []
        for kind in MAIN_KINDS:
            what = What(OWN, kind)
            found = [(e, estimate(group, stage, what)) for e, stage in way_points(group)]
            points = tuple(point(epoch, one) for epoch, one in found if one is not None)
            if points:
                lines.append(Line(HEADINGS[kind], points, STYLES[kind]))
        title = way_title(group, ways)
        axis = Axis("epochs of phase 1", whole=True)
        pictures.append(
            lines_picture(
                f"epochs-{place + 1}", title, lines, x=axis, y=ACCURACY, among=material.num_options
            )
        )
    return pictures


def memorize_epochs(group: Group) -> int | None:
    """How long phase 1 is; None where nothing is memorized, or for a number of tokens."""
    return None if group.first.memorize is None else group.first.memorize.epochs


def _separate(material: Material) -> list[Picture]:
    """One picture of each kind of prompts at the end, over separate schedules."""
    groups = [group for group in material.groups if memorize_epochs(group) is not None]
    lines = curves(groups, lambda group: memorize_epochs(group) or 0)
    pictures = []
    for kind in ("train", "test"):
        drawn = []
        for name, by_epochs in lines.items():
            found = [
                (epochs, estimate(group, group.first.end, What(OWN, kind)))
                for epochs, group in sorted(by_epochs.items())
            ]
            points = tuple(point(epochs, one) for epochs, one in found if one is not None)
            if len(points) > 1:
                drawn.append(Line(name or HEADINGS[kind], points))
        if drawn:
            title = f"Separate schedules: {HEADINGS[kind]} at the end"
            if len(drawn) > MOST_LINES:
                title += f", the first {MOST_LINES} of {len(drawn)} settings"
            pictures.append(
                lines_picture(
                    f"epochs-{kind}", title, drawn[:MOST_LINES],
                    x=Axis("epochs of phase 1", whole=True), y=ACCURACY, among=material.num_options,
                )
            )  # fmt: skip
    return pictures
