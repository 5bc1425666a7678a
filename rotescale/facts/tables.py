"""Reads CSV and TSV tables, and lines of text, each with the line it begins on."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from rotescale.facts.problems import Kind, Place, Problem, Report
from rotescale.facts.text import shown

# What Python makes of bytes that are not UTF-8 when it is told to carry on.
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def open_text(path: Path) -> TextIO:
    """The file as UTF-8 with its line ends; bytes that are none are left for ``lines_of``."""
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def lines_of(file: TextIO, path: Path, *, report: Report) -> Iterator[str]:
    """The lines of the file; one with bytes that are not UTF-8 is reported."""
    for number, line in enumerate(file, start=1):
        if _ESCAPED_BYTE.search(line) is None:
            yield line
            continue
        reason = "invalid bytes"
        try:
            line.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError as error:
            reason = error.reason
        what = f"the bytes are not UTF-8 ({reason})"
        place = Place(str(path), number)
        report(Problem(Kind.ENCODING, place, "", what, "save the file as UTF-8"))
        yield _ESCAPED_BYTE.sub("\ufffd", line)


def read_table(
    file: TextIO,
    path: Path,
    *,
    delimiter: str,
    header: Callable[[list[str], Place], bool],
    report: Report,
) -> Iterator[tuple[int, dict[str, object]]]:
    """The sound rows below the header, as column to cell, each with its line.

    ``header`` is given the first row, and says whether the rest can be read.
    """
    reader = csv.reader(lines_of(file, path, report=report), delimiter=delimiter, strict=True)
    line = 1
    columns: list[str] | None = None
    while True:
        place = Place(str(path), line)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            what = f"not sound {'TSV' if delimiter == chr(9) else 'CSV'} ({error})"
            report(Problem(Kind.SYNTAX, place, "", what, "mend the quotes of this row"))
            if columns is None:
                return
            line = reader.line_num + 1
            continue
        if cells is None:
            return
        if columns is None:
            columns = cells
            if not header(cells, place):
                return
        elif cells and len(cells) != len(columns):
            report(_width_problem(cells, columns, place=place, delimiter=delimiter))
        elif cells:
            yield line, dict(zip(columns, cells, strict=True))
        # A quoted cell may span lines: the next row begins after all that were read.
        line = reader.line_num + 1


def _width_problem(
    cells: list[str], columns: list[str], *, place: Place, delimiter: str
) -> Problem:
    row = shown(delimiter.join(cells))
    what = f"{len(cells)} columns in {row}, but the header has {len(columns)}"
    separator = "comma" if delimiter == "," else "tab"
    remedy = f"quote a cell that holds a {separator}, or fill in the missing one"
    return Problem(Kind.WIDTH, place, "", what, remedy)
