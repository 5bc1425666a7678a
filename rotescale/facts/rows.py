"""Reads rows of facts from CSV and JSONL files, each with the line it begins on."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rotescale.errors import DataError
from rotescale.facts.text import text_fault

_FIELDS = ("relation", "subject", "object", "distractors")
_REQUIRED = ("subject", "object")


@dataclass(frozen=True, slots=True)
class Row:
    """A fact as a file gives it; ``relation`` and ``distractors`` may be left to the loader."""

    path: Path
    line: int
    relation: str | None
    subject: str
    object: str
    distractors: tuple[str, ...] | None

    @property
    def where(self) -> str:
        return _where(self.path, self.line)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one ``.csv`` or ``.jsonl`` file, in order."""
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"facts file {path} ends in {path.suffix!r}; give a .csv or .jsonl file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from reader(file, path)
    except OSError as error:
        raise DataError(
            f"facts file {path} cannot be read ({error.strerror}); check the path"
        ) from error
    except UnicodeDecodeError as error:
        where = _where(path, _undecodable_line(path))
        raise DataError(
            f"{where}: the bytes are not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error


def _where(path: Path, line: int) -> str:
    return f"{path}, row {line}"


def _undecodable_line(path: Path) -> int:
    """The line of the first byte that is not UTF-8; a stream's own error counts from its buffer."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return content.count(b"\n", 0, error.start) + 1
    return 1


def _read_csv(file: TextIO, path: Path) -> Iterator[Row]:
    reader = csv.reader(file, strict=True)
    line = 1
    columns: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{_where(path, line)}: not sound CSV ({error}); mend the quotes of this row"
            ) from error
        if cells is None:
            return
        if columns is None:
            columns = _checked_columns(cells, where=_where(path, line))
        elif cells:
            yield _csv_row(columns, cells, path=path, line=line)
        # A quoted cell may span lines: the next row begins after all that were read.
        line = reader.line_num + 1


def _checked_columns(columns: list[str], *, where: str) -> list[str]:
    for column in columns:
        if column not in _FIELDS or columns.count(column) > 1:
            fault = "given twice" if column in _FIELDS else "unknown"
            raise DataError(
                f"{where}: column {column!r} is {fault}; "
                f"the header names each of these at most once: {', '.join(_FIELDS)}"
            )
    for column in _REQUIRED:
        if column not in columns:
            raise DataError(
                f"{where}: the header {','.join(columns)!r} has no column {column!r}; "
                "the first row names the columns: subject,object"
            )
    return columns


def _csv_row(columns: list[str], cells: list[str], *, path: Path, line: int) -> Row:
    where = _where(path, line)
    if len(cells) != len(columns):
        raise DataError(
            f"{where}: {len(cells)} columns in {','.join(cells)!r}, but the header has "
            f"{len(columns)}; quote a cell that holds a comma, or fill in the missing one"
        )
    record: dict[str, object] = dict(zip(columns, cells, strict=True))
    if record.get("distractors") == "":
        del record["distractors"]
    elif "distractors" in record:
        record["distractors"] = _json(str(record["distractors"]), where=f"{where}: distractors")
    return _row(record, path=path, line=line)


def _read_jsonl(file: TextIO, path: Path) -> Iterator[Row]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        record = _json(text.strip(), where=f"{_where(path, line)}: this line")
        if not isinstance(record, dict):
            raise DataError(
                f"{_where(path, line)}: {text.strip()!r} is not a JSON object; "
                'write {"subject": ..., "object": ...}'
            )
        for field in record:
            if field not in _FIELDS:
                raise DataError(
                    f"{_where(path, line)}: unknown field {field!r}; known are: "
                    f"{', '.join(_FIELDS)}"
                )
        yield _row(record, path=path, line=line)


def _json(text: str, *, where: str) -> object:
    try:
        value: object = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not sound JSON ({error}): {text[:80]!r}; mend it") from error
    return value


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a field is given twice")
    return record


def _row(record: Mapping[str, object], *, path: Path, line: int) -> Row:
    """A row of sound types and sound text; what it means is the loader's to judge."""
    where = _where(path, line)
    names: dict[str, str] = {}
    for field in ("relation", *_REQUIRED):
        if field not in record:
            if field in _REQUIRED:
                raise DataError(f"{where}: field {field!r} is missing; give subject and object")
            continue
        value = record[field]
        fault = text_fault(value)
        if fault is not None or not isinstance(value, str):
            raise DataError(f"{where}: {field} {fault}")
        names[field] = value
    return Row(
        path=path,
        line=line,
        relation=names.get("relation"),
        subject=names["subject"],
        object=names["object"],
        distractors=_distractors(record.get("distractors"), where=where),
    )


def _distractors(value: object, *, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{where}: distractors {value!r} is not a list of at least one name; "
            'write a JSON list such as ["Nora Webb", "Ruth Ford"], or leave it out'
        )
    for number, distractor in enumerate(value, start=1):
        fault = text_fault(distractor)
        if fault is not None:
            raise DataError(f"{where}: distractor {number} {fault}")
    return tuple(value)
