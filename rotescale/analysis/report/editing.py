"""The section about model editing: what an editor reached on the same facts."""

from __future__ import annotations

from collections.abc import Sequence

from rotescale.analysis.editing import EDITED, TOKEN_ACCURACY, WHOLE_TARGET
from rotescale.analysis.report.estimates import Estimate, What, estimate
from rotescale.analysis.report.material import BASE, Material
from rotescale.analysis.report.page import Content, Section, number, table
from rotescale.analysis.results import HEADINGS
from rotescale.records import EvaluationRow

_KINDS = ("train", "test")
_EDITED_KINDS = (*_KINDS, "wrong_relation", "reversed")


def editing_section(material: Material) -> Section | str:
    """EasyEdit's values beside generation on facts that a phase told with prompts."""
    if not material.editings:
        return "Model editing: no results of EasyEdit were given (--easyedit METHOD=FILE)."
    rows = [*_edited(material), *_trained(material)]
    headings = ["method", "relation", "asked with", "n", "before", "after", "tokens after"]
    return Section(
        "editing",
        "Model editing",
        "Facts that were edited, with the prompt of the edit (train) and one rephrasing (test), as "
        "EasyEdit measured them: a target counts where each of its tokens is predicted behind the "
        "true ones before it. So does the question reversed; asked with another relation's prompt, "
        "an answer counts that the edit has left as it was. Beside them, of this project's own "
        "settings, exact generation on the facts that a phase told with prompts, before training "
        "and at its end. An editor is told each fact with a meaningful prompt; held-out facts have "
        "no counterpart.",
        (table("Whole targets, and single tokens of them", headings, rows),),
    )


def _edited(material: Material) -> list[list[Content]]:
    rows: list[list[Content]] = []
    for method, values in material.editings.items():
        for relation in dict.fromkeys(row.relation for row in values):
            for kind in _EDITED_KINDS:
                before, after, tokens = (
                    _value(values, relation, kind, stage=stage, metric=metric)
                    for stage, metric in (
                        ("base", WHOLE_TARGET),
                        (EDITED, WHOLE_TARGET),
                        (EDITED, TOKEN_ACCURACY),
                    )
                )
                known = after or before
                if known is not None:
                    start: list[Content] = [method, relation, HEADINGS[kind], known.count]
                    rows.append([*start, *map(number, (before, after, tokens))])
    return rows


def _value(
    rows: Sequence[EvaluationRow], relation: str, kind: str, *, stage: str, metric: str
) -> Estimate | None:
    wanted = (relation, kind, stage, metric)
    for row in rows:
        if (row.relation, row.prompts, row.stage, row.metric) == wanted:
            return Estimate(row.value, row.low, row.high, row.count, row.count, ())
    return None


def _trained(material: Material) -> list[list[Content]]:
    rows: list[list[Content]] = []
    for group in material.groups:
        for relation in material.relations:
            for kind in _KINDS:
                what = What(relation, kind, split="trained", metric="generation_exact")
                before, after = (estimate(group, stage, what) for stage in (BASE, group.first.end))
                if after is not None:
                    start: list[Content] = [group.name, relation, HEADINGS[kind], after.count]
                    rows.append([*start, number(before), number(after), None])
    return rows
