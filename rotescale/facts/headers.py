"""Which columns a table of facts has, before anything says what they hold."""

from __future__ import annotations

from pathlib import Path

from rotescale.errors import DataError
from rotescale.facts.layouts import read_json
from rotescale.facts.parquet import read_parquet
from rotescale.facts.problems import Place, refuse
from rotescale.facts.tables import open_text, read_table
from rotescale.spec import TABLE_SUFFIXES


def columns_of(path: Path) -> list[str]:
    """The names in the header, or of a JSONL file those of its first line.

    Raises DataError for a file that is not there, is of no known kind, or holds no header.
    """
    found: list[str] = []

    def note(columns: list[str], place: Place) -> bool:
        found.extend(columns)
        return False

    def nothing(columns: list[str], place: Place) -> list[str]:
        note(columns, place)
        return []

    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise DataError(f"{path}: ends in {path.suffix!r}; give one of {', '.join(TABLE_SUFFIXES)}")
    try:
        if suffix == ".parquet":
            list(read_parquet(path, wanted=nothing))
        else:
            with open_text(path) as file:
                if suffix == ".jsonl":
                    first = next((line for line in file if line.strip()), "{}")
                    record = read_json(first)
                    found.extend(record if isinstance(record, dict) else ())
                else:
                    delimiter = "\t" if suffix == ".tsv" else ","
                    list(read_table(file, path, delimiter=delimiter, header=note, report=refuse))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"{path}: its first line is not sound ({error}); mend it") from error
    if not found:
        raise DataError(f"{path}: no header; the first row names the columns")
    return found
