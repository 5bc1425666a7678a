"""Reads rows of facts from CSV, TSV, JSONL and parquet files, each with the place it stands in."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rotescale.errors import DataError
from rotescale.facts.layouts import (
    FIELDS,
    LIST_NAMES,
    OWN,
    REQUIRED,
    Layout,
    check_columns,
    list_value,
    read_json,
)
from rotescale.facts.parquet import read_parquet
from rotescale.facts.problems import Kind, Place, Problem, Report, refuse, text_problem
from rotescale.facts.tables import lines_of, open_text, read_table
from rotescale.facts.text import shown, text_fault
from rotescale.spec import TABLE_SUFFIXES

_Record = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Row:
    """A fact as a source gives it; its distractors may be left to the loader."""

    place: Place
    relation: str
    subject: str
    object: str
    distractors: tuple[str, ...] | None
    old_object: str | None = None


def read_rows(
    path: Path, *, relation: str, layout: Layout = OWN, report: Report = refuse
) -> Iterator[Row]:
    """The sound rows of one file, in order; ``relation`` is that of rows that name none.

    Raises DataError for a file that is not there or of no known kind; the rest is reported.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise DataError(
            f"facts file {path} ends in {path.suffix!r}; give a .csv or .jsonl file, "
            "or a .tsv or .parquet file"
        )
    if suffix == ".jsonl" and not layout.named:
        # In a JSON line a list is a list; only other tools' files hold it as a text.
        layout = replace(layout, lists=None)
    is_empty = True

    def told(problem: Problem) -> None:
        nonlocal is_empty
        is_empty = False
        report(problem)

    try:
        for line, record in _records(path, suffix, layout=layout, report=told):
            is_empty = False
            place = Place(str(path), line)
            row = row_of(record, relation=relation, layout=layout, place=place, report=report)
            if row is not None:
                yield row
    except OSError as error:
        raise DataError(
            f"facts file {path} cannot be read ({error.strerror or error}); check the path"
        ) from error
    if is_empty:
        what, remedy = "holds no facts", "give at least one row, or drop it"
        report(Problem(Kind.NO_FACTS, Place(str(path)), "", what, remedy))


def _records(
    path: Path, suffix: str, *, layout: Layout, report: Report
) -> Iterator[tuple[int, _Record]]:
    """The rows of the file as column to value, each with its line or number."""

    def is_sound(columns: list[str], place: Place) -> bool:
        return check_columns(columns, layout, place=place, report=report)

    def wanted(columns: list[str], place: Place) -> list[str]:
        known = [column for column in columns if column in layout.columns.values()]
        return known if is_sound(columns, place) else []

    if suffix == ".parquet":
        yield from read_parquet(path, wanted=wanted)
        return
    with open_text(path) as file:
        if suffix == ".jsonl":
            for line, text in enumerate(lines_of(file, path, report=report), start=1):
                place = Place(str(path), line)
                record = _json_record(text.strip(), layout, place=place, report=report)
                if record is not None:
                    yield line, record
        else:
            delimiter = "\t" if suffix == ".tsv" else ","
            yield from read_table(file, path, delimiter=delimiter, header=is_sound, report=report)


def _json_record(text: str, layout: Layout, *, place: Place, report: Report) -> _Record | None:
    """The object of one line, or None after a report; an empty line has none."""
    if not text:
        return None
    try:
        record = read_json(text)
    except ValueError as error:
        what = f"this line is not sound JSON ({error}): {text[:80]!r}"
        report(Problem(Kind.SYNTAX, place, "", what, "mend it"))
        return None
    if not isinstance(record, dict):
        what, remedy = (
            f"{shown(text)} is not a JSON object",
            'write {"subject": ..., "object": ...}',
        )
        report(Problem(Kind.SYNTAX, place, "", what, remedy))
        return None
    for field in record if not layout.named else ():
        if field not in FIELDS:
            what, remedy = f"unknown field {shown(field)}", f"known are: {', '.join(FIELDS)}"
            report(Problem(Kind.HEADER, place, field, what, remedy))
    missing = [layout.columns[field] for field in layout.required]
    missing = [column for column in missing if column not in record]
    for column in missing:
        remedy = "give subject and object"
        if layout.named:
            remedy = f"name one of this row's: {shown(', '.join(record))}"
        report(Problem(Kind.HEADER, place, column, f"field {column!r} is missing", remedy))
    return None if missing else record


def row_of(
    record: _Record, *, relation: str, layout: Layout, place: Place, report: Report
) -> Row | None:
    """A row of the values; None after a report that leaves nothing to judge further."""
    names = {"relation": relation}
    is_whole = True
    for field in ("relation", *REQUIRED):
        column = layout.columns.get(field)
        if column is None or column not in record:
            continue
        value = _tidied(record[column]) if layout.tidy else record[column]
        fault = text_fault(value)
        if fault is not None:
            report(text_problem(fault, place=place, field=layout.label(field)))
        if isinstance(value, str) and value.strip():
            names[field] = value
        else:
            is_whole = False
    old_object = _old_object(record, layout, place=place, report=report)
    distractors, is_sound = _distractors(record, layout, place=place, report=report)
    if not (is_whole and is_sound):
        return None
    named = (names["relation"], names["subject"], names["object"])
    return Row(place, *named, distractors, old_object)


def _old_object(record: _Record, layout: Layout, *, place: Place, report: Report) -> str | None:
    """The row's old object; None where it leaves it out, and after a report of what is no text."""
    column = layout.columns.get("old_object")
    value = None if column is None else record.get(column)
    value = _tidied(value) if layout.tidy else value
    if value is None or value == "":
        return None
    fault = text_fault(value)
    if fault is not None:
        report(text_problem(fault, place=place, field=layout.label("old_object")))
    return value if isinstance(value, str) and value.strip() else None


def _tidied(value: object) -> object:
    """Runs of white space made one space; a number as its text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return " ".join(value.split()) if isinstance(value, str) else value


def _distractors(
    record: _Record, layout: Layout, *, place: Place, report: Report
) -> tuple[tuple[str, ...] | None, bool]:
    """The row's distractors, None where it leaves them out; and whether they can be judged."""
    column = layout.columns.get("distractors")
    value = None if column is None else record.get(column)
    field = "" if column is None else layout.label("distractors")
    if isinstance(value, str) and layout.lists is not None:
        try:
            value = list_value(value, layout.lists) if value else None
        except ValueError as error:
            what = f"{field} is not sound {LIST_NAMES[layout.lists]} ({error}): {str(value)[:80]!r}"
            report(Problem(Kind.LIST, place, "distractors", what, "mend it"))
            return None, False
    if value is None:
        return None, True
    if layout.tidy and isinstance(value, list):
        value = [_tidied(one) for one in value]
    if not isinstance(value, list) or not value:
        what = f"{field} {shown(value)} is not a list of at least one name"
        remedy = 'write a JSON list such as ["Nora Webb", "Ruth Ford"], or leave it out'
        report(Problem(Kind.LIST, place, "distractors", what, remedy))
        return None, False
    for number, distractor in enumerate(value, start=1):
        fault = text_fault(distractor)
        if fault is not None:
            report(text_problem(fault, place=place, field=f"distractor {number}"))
    if not all(isinstance(distractor, str) for distractor in value):
        return None, False
    # Facts of a relation share their options: one copy of each name, whatever the number of facts.
    return tuple(map(sys.intern, value)), True
