"""The rules by which facts can be memorized and ranked; each fault is reported with its row."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache

from rotescale.errors import DataError
from rotescale.facts.problems import Kind, Place, Problem, Report, refuse, text_problem
from rotescale.facts.rows import Row
from rotescale.facts.text import normalise, text_fault
from rotescale.facts.types import NUM_DISTRACTORS, FactSet

# A relation's facts mostly draw their options from one pool of names, so each is met many times.
_normalised = lru_cache(maxsize=100_000)(normalise)
_BORDER = re.compile(r"\W")
_fault = lru_cache(maxsize=100_000)(text_fault)


def validate(fact_set: FactSet, *, where: Callable[[int], str]) -> None:
    """Raise a DataError for the first fault; ``where(index)`` names a fact's file and row."""
    if not fact_set.facts:
        raise DataError("there are no facts; give at least one row of subject and object")
    rows = [
        Row(
            *(Place(where(index)), fact.relation, fact.subject, fact.object),
            *(fact.distractors, fact.old_object),
        )
        for index, fact in enumerate(fact_set.facts)
    ]
    known = {relation.name for relation in fact_set.relations}
    for row in rows_of_known_relations(rows, known, report=refuse):
        options = [(f"distractor {n}", name) for n, name in enumerate(row.distractors or (), 1)]
        old = [] if row.old_object is None else [("old_object", row.old_object)]
        for field, value in (("subject", row.subject), ("object", row.object), *old, *options):
            fault = _fault(value)
            if fault is not None:
                refuse(text_problem(fault, place=row.place, field=field))
    check_rows(rows, report=refuse)


def rows_of_known_relations(
    rows: Sequence[Row], known: Collection[str], *, report: Report
) -> list[Row]:
    """The rows whose relation has prompts; another relation is reported once per file."""
    names = ", ".join(sorted(known)) or "none"
    told: set[tuple[str, str]] = set()
    for row in rows:
        if row.relation not in known and (row.place.file, row.relation) not in told:
            told.add((row.place.file, row.relation))
            what = f"no prompts are known for relation {row.relation!r}, only for: {names}"
            remedy = "correct the name, or give a relations file that has it"
            report(Problem(Kind.RELATION, row.place, "relation", what, remedy))
    return [row for row in rows if row.relation in known]


def check_rows(rows: Sequence[Row], *, report: Report) -> None:
    """Report each row that cannot be a fact among the others; texts are checked as they are read.

    Rows without distractors draw theirs from the relation's objects, which must be fit for that.
    """
    for name, members in by_relation(rows).items():
        _check_drawn(name, members, report=report)
    subjects: dict[tuple[str, str], Row] = {}
    first_of: dict[str, Row] = {}
    for row in rows:
        earlier = subjects.setdefault((row.relation, _normalised(row.subject)), row)
        if earlier is not row:
            _report_duplicate(row, earlier, report=report)
        if row.old_object is not None:
            _check_old_object(row, row.old_object, report=report)
        if row.distractors is not None:
            _check_distractors(row, report=report)
            _check_number(row, first_of.setdefault(row.relation, row), report=report)


def check_num_options(rows: Sequence[Row], *, report: Report) -> None:
    """Report relations whose facts have another number of options than 100, which is allowed."""
    for name, members in by_relation(rows).items():
        first = next((row for row in members if row.distractors is not None), None)
        if first is None or first.distractors is None:
            continue
        number = len(first.distractors)
        if number not in (0, NUM_DISTRACTORS):
            what = (
                f"{number} distractors in relation {name!r}, not {NUM_DISTRACTORS}: an answer "
                f"is right by chance at {1 / (number + 1):.1%}, not 1 %"
            )
            remedy = f"give {NUM_DISTRACTORS}, or compare with that"
            report(Problem(Kind.NUM_OPTIONS, first.place, "distractors", what, remedy))


def check_beginnings(rows: Sequence[Row], *, report: Report) -> None:
    """Report objects that begin with what is, or may be drawn as, another option; it is allowed.

    An option's score is the sum over its tokens, so the shorter one always has the higher.
    """
    for members in by_relation(rows).values():
        pool = {row.object for row in members}
        for row in members:
            options = pool if row.distractors is None else set(row.distractors)
            shorter = [one for one in _beginnings(row.object) if one in options]
            if shorter:
                what = (
                    f"object {row.object!r} begins with {shorter[-1]!r}, which as an option is "
                    "always likelier: beside it multiple_choice cannot be right"
                )
                remedy = "leave one of them out, or look at multiple_choice_normalized"
                report(Problem(Kind.BEGINS, row.place, "object", what, remedy))


def _beginnings(name: str) -> Iterator[str]:
    """What the name begins with, up to where a word or a mark ends, but for the name itself."""
    for border in _BORDER.finditer(name, 1):
        yield name[: border.start()]


def by_relation(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    """The rows of each relation, in order."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(row.relation, []).append(row)
    return members


def _check_drawn(name: str, rows: Sequence[Row], *, report: Report) -> None:
    """All rows of a relation give distractors, or none; without, objects must do for them."""
    without = [row for row in rows if row.distractors is None]
    if len(without) == len(rows):
        _check_pool(name, rows, report=report)
        return
    for row in without:
        what = f"no distractors, but other rows of relation {name!r} have them"
        remedy = "give them in all of its rows or in none"
        report(Problem(Kind.NO_DISTRACTORS, row.place, "distractors", what, remedy))


def _check_pool(name: str, rows: Sequence[Row], *, report: Report) -> None:
    """Objects that are each other's distractors are distinct, and a hundred at least."""
    seen: dict[str, Row] = {}
    for row in rows:
        earlier = seen.setdefault(_normalised(row.object), row)
        if earlier is not row:
            what = f"object {row.object!r} is already the object at {earlier.place}"
            remedy = (
                "without a distractors column objects must differ, so give distractors or "
                "another object"
            )
            report(Problem(Kind.OBJECTS, row.place, "object", what, remedy))
    needed = NUM_DISTRACTORS + 1
    if len(seen) < needed:
        what = f"relation {name!r} ends here with {len(seen)} distinct objects and no distractors"
        remedy = f"it needs {needed} objects ({needed - len(seen)} more), or a distractors column"
        report(Problem(Kind.OBJECTS, rows[-1].place, "object", what, remedy))


def _report_duplicate(row: Row, earlier: Row, *, report: Report) -> None:
    same = _normalised(row.object) == _normalised(earlier.object)
    what = f"subject {row.subject!r} is already in relation {row.relation!r} at {earlier.place}"
    kind = Kind.DUPLICATE_PAIR if same else Kind.DUPLICATE_SUBJECT
    report(Problem(kind, row.place, "subject", what, "keep one fact per subject"))


def _check_old_object(row: Row, old_object: str, *, report: Report) -> None:
    """Another name than the object, and one of the options, so that the two can be compared."""
    old = _normalised(old_object)
    what = f"old_object {old_object!r}"
    if old == _normalised(row.object):
        what, remedy = f"{what} is the object itself", "give another, or leave it out"
    elif row.distractors and old not in map(_normalised, row.distractors):
        what, remedy = f"{what} is not among the distractors", "add it to them, or leave it out"
    else:
        return
    report(Problem(Kind.OLD_OBJECT, row.place, "old_object", what, remedy))


def _check_number(row: Row, first: Row, *, report: Report) -> None:
    number, expected = len(row.distractors or ()), len(first.distractors or ())
    if number != expected:
        what = f"{number} distractors, but {expected} at {first.place}"
        remedy = f"give every fact of relation {row.relation!r} as many"
        report(Problem(Kind.UNEVEN, row.place, "distractors", what, remedy))


def _check_distractors(row: Row, *, report: Report) -> None:
    """Distinct names, at least one, none of them the object."""
    if not row.distractors:
        what, remedy = "no distractors", "give at least one wrong answer"
        report(Problem(Kind.NO_DISTRACTORS, row.place, "distractors", what, remedy))
        return
    seen = {_normalised(row.object): 0}
    for number, distractor in enumerate(row.distractors, start=1):
        earlier = seen.setdefault(_normalised(distractor), number)
        if earlier == number:
            continue
        kind, what, remedy = Kind.GOLD, "is the object itself", "remove it"
        if earlier:
            kind, what = Kind.REPEATED_DISTRACTOR, f"repeats distractor {earlier}"
            remedy = "give distinct ones"
        field = f"distractor {number}"
        what = f"{field} {distractor!r} {what}"
        report(Problem(kind, row.place, field, what, remedy))
