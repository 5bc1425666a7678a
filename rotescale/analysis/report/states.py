"""The section about hidden states: ΔCosSim and cosines, stage by stage and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rotescale.analysis import paper
from rotescale.analysis.report.beside import COSINES, states_beside
from rotescale.analysis.report.components import components_pictures
from rotescale.analysis.report.estimates import OWN, What, estimate
from rotescale.analysis.report.figures import MOST_LINES, Axis, Line, lines_picture
from rotescale.analysis.report.material import Group, Material, Stage
from rotescale.analysis.report.page import Content, Html, Picture, Section, number, table
from rotescale.analysis.report.sections import (
    STYLES,
    ends,
    measured,
    place_headings,
    placed,
    point,
    shown,
    stage_name,
    which,
)
from rotescale.analysis.representations import NO_DELTA
from rotescale.analysis.results import HEADINGS
from rotescale.evaluation.similarity import COSINE, DELTA
from rotescale.evaluation.similarity import SUITE as REPRESENTATIONS
from rotescale.records import EvaluationRow
from rotescale.spec import BASE_LANGUAGE


def states_section(material: Material) -> Section | str:
    """Cosines of hidden states along the stages and layer by layer, and their components."""
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
    last = [what for what in whats if what.layer == layers[-1]]
    split = "held_out" if any(what.split == "held_out" for what in whats) else "trained"
    components, components_told = components_pictures(known, layer=layers[-1], split=split)
    delta = "" if any(what.metric == DELTA for what in whats) else f" {NO_DELTA}."
    return Section(
        REPRESENTATIONS,
        "Representations",
        "Hidden states at the last token of a prompt: ΔCosSim is the mean cosine within a "
        "relation less that between relations; other cosines are to the same fact's state at its "
        f"key token. Intervals are over facts, and over seeds too where there are several.{delta} "
        + paper.SUITES[REPRESENTATIONS]
        + which(known)
        + components_told,
        (_table(material, known, last), states_beside(known, layer=layers[-1])),
        (
            *_stage_pictures(known, last),
            *_layer_pictures(known, last, layers),
            *components,
        ),
    )


def _table(material: Material, known: Sequence[Group], last: Sequence[What]) -> Html:
    """The values at the last layer: a column for every stage, those on the way too."""
    stages = measured(_in_order(known), known, last)
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
    caption = f"Cosines at layer {last[0].layer}, the last, with 95 % intervals"
    return table(caption, [*headings, *map(stage_name, stages)], lines)


def _in_order(groups: Sequence[Group]) -> list[Stage]:
    """Every stage of any group: phases as they come, and epochs of a phase before its end."""
    found = {stage for group in groups for stage in group.stages()}
    phases = list(dict.fromkeys(name for group in groups for name, _ in group.stages()))
    return sorted(found, key=lambda s: (phases.index(s[0]), s[1] is None, s[1] or 0))


def _stage_pictures(groups: Sequence[Group], last: Sequence[What]) -> list[Picture]:
    """ΔCosSim and cosines at the last layer along the stages, epochs on the way among them."""
    pictures = []
    for place, group in enumerate(shown(groups)):
        for metric in (DELTA, COSINE):
            whats = _drawn(last, metric)
            stages = measured(_in_order([group]), [group], whats)
            if len(stages) < 2:
                continue
            title = f"{COSINES[metric]}, last layer, along the stages"
            pictures.append(
                lines_picture(
                    f"{REPRESENTATIONS}-stages-{metric.replace('_', '-')}-{place + 1}",
                    title if len(groups) == 1 else f"{group.name}: {title}",
                    _stage_lines(group, stages, whats),
                    x=Axis("measured after", ticks=tuple(map(stage_name, stages))),
                    y=Axis(COSINES[metric]),
                )
            )
    return pictures


def _drawn(last: Sequence[What], metric: str) -> list[What]:
    """Each kind of prompts, in English: of held-out facts, where there are any."""
    chosen = [w for w in last if (w.metric, w.language) == (metric, BASE_LANGUAGE)]
    split = "held_out" if any(what.split == "held_out" for what in chosen) else "trained"
    of_split = (replace(what, relation=OWN) for what in chosen if what.split == split)
    return list(dict.fromkeys(of_split))


def _stage_lines(group: Group, stages: Sequence[Stage], whats: Sequence[What]) -> list[Line]:
    lines = []
    for what in whats:
        found = [(place, estimate(group, stage, what)) for place, stage in enumerate(stages)]
        points = tuple(point(place, one) for place, one in found if one is not None)
        if points:
            lines.append(Line(HEADINGS[what.prompts], points, STYLES.get(what.prompts)))
    return lines


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
