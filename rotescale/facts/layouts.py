"""Which columns of a file hold a fact's fields, and how its lists of distractors are written."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rotescale.facts.problems import Kind, Place, Problem, Report
from rotescale.facts.text import shown

FIELDS = ("relation", "subject", "object", "distractors", "old_object")
REQUIRED = ("subject", "object")

MAX_LIST_CHARACTERS = 131_072
"""The longest text that is read as a list: 99 names of a thousand characters fit."""

Lists = Literal["json", "python", "any"]

LIST_NAMES: Mapping[Lists, str] = {"json": "JSON", "python": "Python", "any": "JSON or Python"}


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of one kind of file."""

    columns: Mapping[str, str]
    """Field -> the column that holds it."""
    named: bool
    """Whether a user named the columns: then all of them must be there, and others are ignored."""
    lists: Lists | None
    """How a text is read as a list of distractors; None: a text is no list."""
    tidy: bool = False
    """Whether white space is tidied and numbers are taken as text before anything is judged."""

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(self.columns) if self.named else REQUIRED

    def label(self, field: str) -> str:
        """The field as an error names it, with the file's own name for it."""
        column = self.columns[field]
        return field if column == field else f"{field} ({column!r})"


OWN = Layout({field: field for field in FIELDS}, named=False, lists="json")
TREX = Layout(
    {"subject": "Head", "object": "Fact", "distractors": "Alternate Facts"},
    named=True,
    lists="python",
)


def layout_of(columns: Mapping[str, str] | None) -> Layout:
    """The layout of a file with those columns (field to column); default: rotescale's own."""
    return OWN if columns is None else Layout(dict(columns), named=True, lists="any")


def check_columns(columns: Sequence[str], layout: Layout, *, place: Place, report: Report) -> bool:
    """Report what is wrong with a header; whether the rows below it can be read."""
    wanted = layout.columns.values()
    separator = other_separator(columns)
    if separator is not None:
        what = f"the columns {shown(columns[0])} seem to be separated by {separator!r}"
        report(Problem(Kind.HEADER, place, columns[0], what, SEPARATORS))
        return False
    for column in dict.fromkeys(columns):
        unknown = column not in wanted
        if (unknown and not layout.named) or (not unknown and columns.count(column) > 1):
            fault = "unknown" if unknown else "given twice"
            what = f"column {shown(column)} is {fault}"
            remedy = f"the header names each of these at most once: {', '.join(wanted)}"
            if unknown:
                remedy += " (or say which is which: --columns subject=..., in a spec facts.columns)"
            report(Problem(Kind.HEADER, place, column, what, remedy))
    missing = [field for field in layout.required if layout.columns[field] not in columns]
    for field in missing:
        column = layout.columns[field]
        what = f"the header {shown(','.join(columns))} has no column {column!r}"
        remedy = "the first row names the columns: subject,object"
        if layout.named:
            remedy = f"name the column that holds the {field}: {shown(', '.join(columns))}"
        report(Problem(Kind.HEADER, place, column, what, remedy))
    return not missing


SEPARATORS = "save the table with commas (.csv) or with tabs (.tsv)"


def other_separator(columns: Sequence[str]) -> str | None:
    """What a header that was read as a single column is likely to be separated by."""
    return next((c for c in ";\t|," if len(columns) == 1 and c in columns[0]), None)


def read_json(text: str) -> object:
    """The value of a JSON text. Raises ValueError, also where an object gives a field twice."""
    try:
        value: object = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    return value


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a field is given twice")
    return record


def list_value(text: str, lists: Lists) -> object:
    """The value of a text that should be a list. Raises ValueError that says why it is none.

    A Python list is read as a literal: nothing in it is ever run.
    """
    if len(text) > MAX_LIST_CHARACTERS:
        raise ValueError(f"{len(text)} characters, at most {MAX_LIST_CHARACTERS} may be")
    if lists == "json":
        return read_json(text)
    if lists == "any":
        try:
            return read_json(text)
        except ValueError:
            pass
    try:
        value: object = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        # What literal_eval says of a call names an object in memory, of no use to a reader.
        reason = error.msg if isinstance(error, SyntaxError) else "not a list of quoted names"
        raise ValueError(reason) from error
    return value
