"""Reads the rows of parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rotescale.errors import DataError
from rotescale.facts.problems import Place

_BATCH_ROWS = 10_000


def read_parquet(
    path: Path, *, wanted: Callable[[list[str], Place], list[str]]
) -> Iterator[tuple[int, dict[str, object]]]:
    """The rows, as column to value, each with its number from 1.

    ``wanted`` is given all columns, and says which to read; with none, there are no rows.
    Raises DataError for a file that is not parquet, and where pyarrow is missing.
    """
    try:
        # Installed with rotescale[train] only.
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(
            f"facts file {path}: parquet is read with pyarrow, which is not installed; install "
            "rotescale[train], or save the file as CSV"
        ) from error
    try:
        with ParquetFile(path) as file:
            columns = wanted(list(file.schema_arrow.names), Place(str(path)))
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for record in batch.to_pylist() if columns else []:
                    number += 1
                    yield number, record
    except ArrowException as error:
        raise DataError(
            f"facts file {path} is not sound parquet ({error}); write the file again"
        ) from error
