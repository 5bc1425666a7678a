"""Reads rows of facts from Hugging Face datasets: on the hub, in a folder, or in one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rotescale.errors import DataError
from rotescale.facts.layouts import check_columns, layout_of
from rotescale.facts.load import Reading, known_relations
from rotescale.facts.problems import Kind, Place, Problem, Report, refuse
from rotescale.facts.rows import Row, row_of
from rotescale.spec import DatasetFacts

# Files that are opened by their format's name, since no repository surrounds them.
_FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".arrow": "arrow"}


def read_dataset(source: DatasetFacts, *, report: Report = refuse) -> Reading:
    """The rows of the dataset's split, streamed.

    Raises DataError where the dataset cannot be reached or read; what is wrong in a row is
    reported, rows being counted from 1.
    """
    prompts = None if source.relations_file is None else Path(source.relations_file)
    known, given = known_relations(prompts)
    columns = None if source.columns is None else source.columns.named()
    layout = layout_of(columns)
    relation = source.relation
    if relation is None and len(given) == 1:
        relation = next(iter(given))
    file = f"dataset {source.dataset}, split {source.split}"
    rows: list[Row] = []
    number = 0
    for number, record in enumerate(_records(source, where=file), start=1):
        if number == 1:
            if not check_columns(list(record), layout, place=Place(file), report=report):
                break
            if relation is None and layout.columns.get("relation") not in record:
                raise DataError(
                    f"{file}: no column holds the relation; name the one relation of all rows "
                    "(facts.relation), or the column (facts.columns.relation)"
                )
        place = Place(file, number)
        row = row_of(record, relation=relation or "", layout=layout, place=place, report=report)
        if row is not None:
            rows.append(row)
    if not number:
        report(Problem(Kind.NO_FACTS, Place(file), "", "holds no facts", "name another split"))
    return Reading(rows, known)


def _records(source: DatasetFacts, *, where: str) -> Iterator[Mapping[str, object]]:
    """The rows as column to value."""
    try:
        # Installed with rotescale[train] only; httpx is whichever the hub's library is built on.
        from datasets.exceptions import DatasetsError
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]
    except ImportError as error:
        raise DataError(
            f"{where}: read with the package datasets, which is not installed; install "
            "rotescale[train], or save the facts as CSV"
        ) from error
    try:
        yield from _stream(source)
    except (ConnectionError, httpx.TransportError) as error:
        raise DataError(
            f"{where}: the hub cannot be reached ({_reason(error)}); connect to the network, or "
            "download the dataset elsewhere and name its folder"
        ) from error
    except (DatasetsError, OSError, ValueError, TypeError, RuntimeError, httpx.HTTPError) as error:
        # A TypeError is how columns of other types than announced come out.
        raise DataError(
            f"{where}: cannot be read ({_reason(error)}); check dataset, config, split and "
            "revision, and your rights to it"
        ) from error


def _stream(source: DatasetFacts) -> Any:
    from datasets import load_dataset

    path = Path(source.dataset)
    if path.is_file():
        kind = _FORMATS.get(path.suffix.lower())
        if kind is None:
            raise ValueError(f"{path.suffix!r} is none of {', '.join(_FORMATS)}")
        return load_dataset(kind, data_files=str(path), split=source.split, streaming=True)
    return load_dataset(
        source.dataset,
        name=source.config,
        split=source.split,
        revision=source.revision,
        streaming=True,
    )


def _reason(error: Exception) -> str:
    """The first line of what the library says, of which some messages have many."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
