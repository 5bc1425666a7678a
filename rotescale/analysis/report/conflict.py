"""The section about conflicts: what the untrained model believed, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rotescale.analysis.conflict_table import CONFLICT_HEADINGS
from rotescale.analysis.report.estimates import OWN, What, estimate
from rotescale.analysis.report.figures import Axis
from rotescale.analysis.report.material import Cell, Group, Material
from rotescale.analysis.report.page import Content, Picture, Section, number, table
from rotescale.analysis.report.sections import (
    ends,
    measured,
    place_headings,
    placed,
    shown,
    stage_name,
    stages_picture,
    which,
)
from rotescale.analysis.results import HEADINGS
from rotescale.evaluation.conflict import BELIEVED, CONFLICT

_FACTS = {BELIEVED: "believed", CONFLICT: "all"}
_WINNERS = ("multiple_choice", "prefers_old", "prefers_neither")
_SHARE = Axis("share of questions", unit=True)


def conflict_section(material: Material) -> Section | str:
    """Probability and victories of old and new objects by stage, of believed facts and of all."""
    whats = _whats(material)
    if not whats:
        return "Conflict: not asked (evaluation.conflict_facts)."
    stages = measured(ends(material.groups), material.groups, whats)
    rows: list[list[Content]] = []
    for group in material.groups:
        for what in whats:
            found = [estimate(group, stage, what) for stage in stages]
            known = [one for one in found if one is not None]
            if known:
                start = [_FACTS[what.suite], what.relation, what.split.replace("_", "-")]
                start += [HEADINGS[what.prompts], CONFLICT_HEADINGS[what.metric]]
                facts = known[-1].num_facts or None
                rows.append([*placed(material, group), *start, facts, *map(number, found)])
    headings = place_headings(material, relation=False)
    headings += ["belief", "about", "split", "asked with", "measure", "facts"]
    return Section(
        CONFLICT,
        "Conflict",
        "Facts that contradict what the untrained model was expected to hold. It *believed* the "
        "old object of a fact where that was its most probable option at the first train prompt: "
        f"{_believed(material.groups)}. *New over old* is the share of questions at which the new "
        "object is the more probable of the two, whatever other option wins."
        + which(material.groups),
        (
            table(
                "Conflict: old and new objects, with 95 % intervals",
                [*headings, *map(stage_name, stages)],
                rows,
            ),
        ),
        tuple(_pictures(material, whats)),
    )


def _whats(material: Material) -> list[What]:
    """Every value of both suites, those of believed facts first."""
    found = dict.fromkeys(
        What(row.relation, row.prompts, row.split, row.suite, row.language, row.metric)
        for suite in _FACTS
        for cell in material.cells
        for row in cell.rows
        if row.suite == suite and row.metric in CONFLICT_HEADINGS
    )
    measures = list(CONFLICT_HEADINGS)
    order = {replace(what, metric=""): place for place, what in reversed([*enumerate(found)])}
    return sorted(
        found, key=lambda one: (order[replace(one, metric="")], measures.index(one.metric))
    )


def _believed(groups: Sequence[Group]) -> str:
    """How many facts were believed, over the cells that say so."""
    found = {_numbers(cell) for group in groups for cell in group.cells}
    told = sorted((believed, asked) for believed, asked in found if asked)
    if not told:
        return "how many these are is not known here"
    return " or ".join(f"{believed} of {asked} facts" for believed, asked in told)


def _numbers(cell: Cell) -> tuple[int, int]:
    """Facts that were believed and that were asked about, at the last stage with outcomes."""
    for stage in reversed(cell.stages()):
        about: dict[str, set[int]] = {BELIEVED: set(), CONFLICT: set()}
        for outcome in cell.outcomes(stage):
            about.get(outcome.suite, set()).add(outcome.fact)
        if about[CONFLICT]:
            return len(about[BELIEVED]), len(about[CONFLICT])
    return 0, 0


def _pictures(material: Material, whats: Sequence[What]) -> list[Picture]:
    """Which object wins along the stages, asked with test prompts, or else train prompts.

    Of held-out facts that were believed; of all held-out facts where none was.
    """
    suite = BELIEVED if any(what.suite == BELIEVED for what in whats) else CONFLICT
    kind = "test" if any(what.prompts == "test" for what in whats) else "train"
    labelled = [
        (CONFLICT_HEADINGS[metric], What(OWN, kind, "held_out", suite, metric=metric))
        for metric in _WINNERS
    ]
    pictures = []
    for place, group in enumerate(shown(material.groups)):
        title = "" if len(material.groups) == 1 else f"{group.name}: "
        title += f"{HEADINGS[kind]}, {_FACTS[suite]} held-out facts"
        name = f"{CONFLICT}-{place + 1}"
        pictures.append(stages_picture(name, title, group, labelled, y=_SHARE))
    return [picture for picture in pictures if picture is not None]
