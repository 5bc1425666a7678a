"""The section about wrong answers: which fact, which prompt, and what the model said instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice, zip_longest
from typing import TypeVar

from rotescale.analysis.report.material import Cell, Material
from rotescale.analysis.report.page import Content, Number, Section, table
from rotescale.analysis.report.sections import MAIN_KINDS
from rotescale.analysis.results import HEADINGS
from rotescale.errors import DataError
from rotescale.evaluation.items import CORE, SPLITS
from rotescale.evaluation.metrics import Outcome
from rotescale.facts import FactSet, Relation
from rotescale.facts.saved import load_saved

MOST_ANSWERS = 100
_SPLITS: tuple[str, ...] = SPLITS[::-1]
_KINDS = MAIN_KINDS[::-1]
_T = TypeVar("_T")
_COLUMNS = (
    *("run", "relation", "subject", "facts", "asked with"),
    *("language", "prompt", "right", "chosen", "share of right"),
)
_KEY_PROMPT = "(subject and key token)"


def answers_section(material: Material) -> Section | str:
    """Wrong answers at the end of training, dealt evenly over the runs."""
    asked = 0
    wrong: list[list[tuple[Cell, Outcome]]] = []
    for cell in material.cells:
        found = [o for o in cell.outcomes(cell.end) if _counts(o)]
        asked += len(found)
        mistakes = [o for o in found if not o.values["multiple_choice"]]
        mistakes.sort(key=lambda one: (_SPLITS.index(one.split), _KINDS.index(one.prompts)))
        wrong.append([(cell, outcome) for outcome in mistakes])
    if not asked:
        return "Wrong answers: no question of the core was asked at the end of training."
    total = sum(len(found) for found in wrong)
    chosen = list(islice(_dealt(wrong), MOST_ANSWERS))
    facts = _fact_sets(material)
    columns = _columns(material, [outcome for _, outcome in chosen])
    rows = [
        [content for name, content in _row(*one, facts.get(one[0].name)).items() if name in columns]
        for one in chosen
    ]
    dealt = ", dealt evenly over the runs, held-out facts and test prompts first" if total else ""
    parts = (
        table(
            "Wrong answers",
            columns,
            rows,
        ),
    )
    return Section(
        "answers",
        "Wrong answers",
        f"Multiple choice at the end of training, controls and unrelated prompts left out: "
        f"{total:,} of {asked:,} answers are wrong; at most {MOST_ANSWERS} are listed{dealt}. "
        "A share is the right object's part of the options' probability.",
        parts if rows else (),
    )


def _counts(outcome: Outcome) -> bool:
    known = "multiple_choice" in outcome.values
    return known and outcome.suite == CORE and outcome.prompts in MAIN_KINDS


def _dealt(hands: Sequence[Sequence[_T]]) -> Iterable[_T]:
    """One of each in turn."""
    return (one for one in chain.from_iterable(zip_longest(*hands)) if one is not None)


def _fact_sets(material: Material) -> dict[str, FactSet]:
    """Cell -> its facts; read once where runs share them, and missing where the file is."""
    found: dict[str, FactSet] = {}
    by_text: dict[bytes, FactSet] = {}
    for cell in material.cells:
        if cell.end[0] not in cell.places:
            continue
        path = cell.places[cell.end[0]].facts_json
        try:
            text = path.read_bytes()
            if text not in by_text:
                by_text[text] = load_saved(path)
        except (FileNotFoundError, DataError):
            continue
        found[cell.name] = by_text[text]
    return found


def _columns(material: Material, outcomes: Sequence[Outcome]) -> list[str]:
    """Without those that say the same in every row."""
    alike = {"run"} if len(material.cells) == 1 else set()
    alike |= {"relation"} if len({one.relation for one in outcomes}) == 1 else set()
    alike |= {"language"} if len({one.language for one in outcomes}) == 1 else set()
    return [name for name in _COLUMNS if name not in alike]


def _row(cell: Cell, outcome: Outcome, facts: FactSet | None) -> dict[str, Content]:
    """Column -> what it holds."""
    subject, prompt = f"fact {outcome.fact}", f"prompt {outcome.prompt_index}"
    if facts is not None:
        subject = facts.facts[outcome.fact].subject
        prompt = _prompt(facts.relation(outcome.relation), outcome, subject)
    share = outcome.values.get("object_share")
    contents: tuple[Content, ...] = (
        *(cell.name, outcome.relation, subject, outcome.split.replace("_", "-")),
        *(HEADINGS[outcome.prompts], outcome.language, prompt, outcome.gold, outcome.chosen),
        None if share is None else Number(share, f"{share:.3f}"),
    )
    return dict(zip(_COLUMNS, contents, strict=True))


def _prompt(relation: Relation, outcome: Outcome, subject: str) -> str:
    prompts = relation.in_language(outcome.language)
    match outcome.prompts:
        case "train":
            asked = prompts.train_prompts
        case "test":
            asked = prompts.test_prompts
        case _:
            return _KEY_PROMPT
    return Relation.fill(asked[outcome.prompt_index], subject)
