"""What can be wrong with facts: of which kind, where it stands, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, NoReturn

from rotescale.errors import DataError


class Kind(StrEnum):
    """The kinds of problems, as they are counted."""

    DUPLICATE_SUBJECT = "duplicate subject"
    DUPLICATE_PAIR = "duplicate pair"
    GOLD = "gold among the distractors"
    REPEATED_DISTRACTOR = "repeated distractor"
    NO_DISTRACTORS = "no distractors"
    UNEVEN = "uneven distractors"
    OLD_OBJECT = "bad old object"
    NUM_OPTIONS = "not 99 distractors"
    BEGINS = "object that begins with another option"
    OBJECTS = "objects that cannot be distractors"
    EMPTY = "empty cell"
    CHARACTER = "control character"
    SPACE = "outer white space"
    LENGTH = "too long"
    TYPE = "not a string"
    LIST = "bad list"
    WIDTH = "row of another width"
    HEADER = "bad column"
    ENCODING = "not UTF-8"
    SYNTAX = "unreadable row"
    NO_FACTS = "no facts"
    RELATION = "unknown relation"
    PROMPT = "bad prompt"
    TOKENIZER = "lost in the tokenizer"


class Place(NamedTuple):
    """A file, or what stands for one, and a row of it."""

    file: str
    row: int | None = None

    def __str__(self) -> str:
        return self.file if self.row is None else f"{self.file}, row {self.row}"


class Fault(NamedTuple):
    """What is wrong with a text, wherever it stands."""

    kind: Kind
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with facts; as text, the error that the loader raises for it."""

    kind: Kind
    place: Place
    field: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}; {self.remedy}"


Report = Callable[[Problem], object]
"""Is told of each problem. One that raises makes a loader; one that collects makes a check."""


def refuse(problem: Problem) -> NoReturn:
    """Raise the problem as a DataError: the report of a strict loader."""
    raise DataError(str(problem))


def text_problem(fault: Fault, *, place: Place, field: str) -> Problem:
    """The problem of a faulty text in that field."""
    return Problem(fault.kind, place, field, f"{field} {fault.what}", fault.remedy)
