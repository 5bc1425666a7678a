"""The section about hidden states: ΔCosSim and cosines, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rotescale.analysis import paper
from rotescale.analysis.report.beside import COSINES, states_beside
from rotescale.analysis.report.estimates import OWN, What, estimate
from rotescale.analysis.report.figures import MOST_LINES, Axis, Line, lines_picture
from rotescale.analysis.report.material import Group, Material, Stage
from rotescale.analysis.report.page import Content, Picture, Section, number, table
from rotescale.analysis.report.sections import (
    ends,
    measured,
    place_headings,
    placed,
    point,
    shown,
    stage_name,
    which,
)
from rotescale.analysis.results import HEADINGS
from rotescale.evaluation.similarity import COSINE, DELTA
from rotescale.evaluation.similarity import SUITE as REPRESENTATIONS
from rotescale.records import EvaluationRow
from rotescale.spec import BASE_LANGUAGE


def states_section(material: Material) -> Section | str:
    """Cosines of hidden states, layer by layer, where they were kept."""
    rows = [r for g in material.groups for r in _rows(g) if r.suite == REPRESENTATIONS]
    whats = dict.fromkeys(
        What(*(r.relation, r.prompts, r.split, r.suite, r.language, r.metric),
             layer=r.layer)
        for r in rows
    )  # fmt: skip
    layers = sorted({what.layer for what in whats if what.layer is not None})
    if not layers:
        return "Representations: no hidden states were kept (evaluation.representation_facts)."
    known = [g for g in material.groups if any(r.suite == REPRESENTATIONS for r in _rows(g))]
    stages = measured(ends(known), known, list(whats))
    last = [what for what in whats if what.layer == layers[-1]]
    lines: list[list[Content]] = []
    for group in known:
        for what in last:
            found = [estimate(group, stage, what) for stage in stages]
            if any(found):
                start = [COSINES.get(what.metric, what.metric), HEADINGS[what.prompts]]
                start += [what.language, what.split.replace("_", "-")]
                lines.append([*placed(material, group), *start, *map(number, found)])
    headings = place_headings(material, relation=False)
    headings += ["measure", "states at", "language", "facts"]
    caption = f"Cosines at layer {layers[-1]}, the last, with 95 % intervals over facts"
    return Section(
        REPRESENTATIONS,
        "Representations",
        "Hidden states at the last token of a prompt: ΔCosSim is the mean cosine within a "
        "relation less that between relations; other cosines are to the same fact's state at its "
        "key token. Means over seeds have no interval here. "
        + paper.SUITES[REPRESENTATIONS]
        + which(known),
        (
            table(caption, [*headings, *map(stage_name, stages)], lines),
            states_beside(known, layer=layers[-1]),
        ),
        tuple(_layer_pictures(known, last, layers)),
    )


def _layer_pictures(
    groups: Sequence[Group], last: Sequence[What], layers: Sequence[int]
) -> list[Picture]:
    """Layer by layer, a line per stage: ΔCosSim of the key token, and a cosine to test prompts."""
    pictures = []
    for place, group in enumerate(shown(groups)):
        for metric, kind in ((DELTA, "key_token"), (COSINE, "test")):
            chosen = [what for what in last if (what.metric, what.prompts) == (metric, kind)]
            chosen.sort(key=lambda what: (what.split != "held_out", what.language != BASE_LANGUAGE))
            lines = []
            for stage in _some(group) if chosen else ():
                first = replace(chosen[0], relation=OWN)
                found = [(n, estimate(group, stage, replace(first, layer=n))) for n in layers]
                points = tuple(point(layer, one) for layer, one in found if one is not None)
                if points:
                    lines.append(Line(stage_name(stage), points))
            if lines:
                title = f"{COSINES[metric]}: {HEADINGS[kind]}"
                if len(groups) > 1:
                    title = f"{group.name}: {title}"
                name = f"{REPRESENTATIONS}-{metric.replace('_', '-')}-{place + 1}"
                axis = Axis("layer", whole=True)
                pictures.append(lines_picture(name, title, lines, x=axis, y=Axis(COSINES[metric])))
    return pictures


def _some(group: Group) -> list[Stage]:
    """All stages, or the ends of phases where there are more than can be told apart."""
    stages = group.stages()
    return stages if len(stages) <= MOST_LINES else ends([group])


def _rows(group: Group) -> list[EvaluationRow]:
    return [row for cell in group.cells for row in cell.rows]
