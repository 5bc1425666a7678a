"""The section about how sure the model is of a fact, and whether it says it without options."""

from __future__ import annotations

from rotescale.analysis.report.estimates import OWN, What, estimate, scope
from rotescale.analysis.report.figures import Axis
from rotescale.analysis.report.material import Group, Material, Stage
from rotescale.analysis.report.page import Content, Picture, Section, number, table
from rotescale.analysis.report.sections import (
    ends,
    having,
    place_headings,
    placed,
    shown,
    stage_name,
    stages_picture,
    which,
)
from rotescale.analysis.results import HEADINGS
from rotescale.evaluation.items import PROMPT_KINDS, SPLITS

_CHOICE = "multiple_choice"
_SURE = ("object_probability", "object_share")
_SAYS = ("generation_exact", "generation_contains")
_NAMES = {
    _CHOICE: "chosen",
    "object_probability": "probability",
    "object_share": "share",
    "generation_exact": "says it alone",
    "generation_contains": "says it",
}
_PICTURED = ("test", "train", "key_token")
"""A figure is of the first of these that was asked."""


def certainty_section(material: Material) -> Section | str:
    """Probability and share of the right object, and answers that the model generates."""
    what = next((w for w in _candidates() if having(material.groups, w)), None)
    if what is None:
        return (
            "How sure, and what it says by itself: the core was not asked at the end of training."
        )
    known = having(material.groups, what)
    pictures = [_picture(place, group, material, what) for place, group in enumerate(shown(known))]
    rows = _rows(material)
    says = ""
    if not any(having(material.groups, w) for w in _candidates(_SAYS[0])):
        says = " Nothing was generated (evaluation.generation_facts)."
    headings = ["facts", "asked with", "after", "n", *(_NAMES[m] for m in (_CHOICE, *_SURE))]
    headings += ["n generated", *(_NAMES[m] for m in _SAYS)]
    return Section(
        "certainty",
        "How sure, and what it says by itself",
        "Probability: that the model goes on with the right object, of all that it might say. "
        "Share: the object's part of its options' probability. Chosen: multiple choice, of the "
        "same questions. Generated answers are greedy and see no options; says it alone: the "
        "answer is the object; says it: the object stands in it as whole words. They are of fewer "
        f"questions.{says} Figures: {HEADINGS[what.prompts]}, "
        f"{scope(known, None, what)}." + which(known),
        (
            table(
                "How sure the model is, and what it generates, with 95 % intervals over facts",
                [*place_headings(material), *headings],
                rows,
            ),
        ),
        tuple(picture for picture in pictures if picture is not None),
    )


def _candidates(metric: str = _SURE[0]) -> list[What]:
    """What figures show, the most telling first."""
    return [
        What(OWN, kind, split=split, metric=metric) for split in SPLITS[::-1] for kind in _PICTURED
    ]


def _picture(place: int, group: Group, material: Material, what: What) -> Picture | None:
    """All measures of one kind of prompts, along the ends of phases."""
    whats = [
        (_NAMES[metric], What(OWN, what.prompts, split=what.split, metric=metric))
        for metric in (_CHOICE, *_SURE, *_SAYS)
    ]
    told = f"{what.split.replace('_', '-')} facts, {HEADINGS[what.prompts]}"
    title = told if len(material.groups) == 1 else f"{group.name}: {told}"
    return stages_picture(
        f"certainty-{place + 1}", title, group, whats,
        y=Axis("probability, or share of answers", unit=True), by_kind=False,
    )  # fmt: skip


def _rows(material: Material) -> list[list[Content]]:
    rows: list[list[Content]] = []
    for group in material.groups:
        for relation in material.relations:
            for split in SPLITS:
                for kind in PROMPT_KINDS:
                    for stage in ends([group]):
                        what = What(relation, kind, split=split)
                        if cells := _cells(group, stage, what):
                            start = [*placed(material, group, relation), split.replace("_", "-")]
                            rows.append([*start, HEADINGS[kind], stage_name(stage), *cells])
    return rows


def _cells(group: Group, stage: Stage, what: What) -> list[Content]:
    """The values of one kind of prompts at a stage; none where it was not asked."""
    found = {
        metric: estimate(
            group, stage, What(what.relation, what.prompts, split=what.split, metric=metric)
        )
        for metric in (_CHOICE, *_SURE, *_SAYS)
    }
    asked, said = found[_CHOICE], found[_SAYS[0]]
    if asked is None:
        return []
    return [
        asked.count,
        number(asked),
        *(number(found[metric], decimals=3) for metric in _SURE),
        None if said is None else said.count,
        *(number(found[metric]) for metric in _SAYS),
    ]
