"""Encoded examples on storage: Arrow shards and an index, published by a manifest written last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rotescale.data.encoding import Encoded
from rotescale.data.examples import Example
from rotescale.errors import DataError
from rotescale.storage import StoragePath, file_digest, write_atomic, writing

FORMAT = "rotescale-examples"
VERSION = 2
MANIFEST = "manifest.json"
INDEX = "index.bin"
ROWS_PER_SHARD = 200_000

_INT_COLUMNS = (
    "fact",
    "prompt",
    "subject_start",
    "subject_stop",
    "object_start",
    "object_stop",
)


def write_shards(
    sources: Mapping[str, Iterable[tuple[Example, Encoded]]],
    directory: Path,
    *,
    digest: str,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> None:
    """Write the examples of all sources to ``directory``, one source after the other.

    The directory exists for readers once its manifest does. The index holds (num_tokens,
    num_targets) of each example, int32, so that packing and loss need not open a shard. Memory does
    not grow with the number of examples.

    Raises StorageError where the storage is full or not writable; nothing half-written stays.
    """
    with writing(directory):
        if directory.exists() and not (directory / MANIFEST).exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files: list[dict[str, Any]] = []
        num_rows = 0
        num_rows_of = dict.fromkeys(sources, 0)
        rest = _counted(sources, num_rows_of)
        with (directory / INDEX).open("wb") as index:
            while batch := list(islice(rest, rows_per_shard)):
                name = f"shard-{len(files):05d}.arrow"
                _write_shard(batch, directory / name)
                counts = [
                    (len(e.tokens), sum(1 for label in e.labels if label >= 0)) for _, e in batch
                ]
                index.write(np.asarray(counts, dtype=np.int32).tobytes())
                files.append({**_file_entry(directory / name), "num_rows": len(batch)})
                num_rows += len(batch)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "digest": digest,
            "num_rows": num_rows,
            "sources": num_rows_of,
            "index": _file_entry(directory / INDEX),
            "shards": files,
        }
        write_atomic(directory / MANIFEST, json.dumps(manifest, indent=2).encode())


def _counted(
    sources: Mapping[str, Iterable[tuple[Example, Encoded]]], num_rows: dict[str, int]
) -> Iterator[tuple[Example, Encoded]]:
    """All examples, source by source; ``num_rows`` counts those of each."""
    for name, examples in sources.items():
        for example in examples:
            num_rows[name] += 1
            yield example


def _write_shard(batch: Sequence[tuple[Example, Encoded]], path: Path) -> None:
    # Here, not at the top: datasets takes seconds to import, and a dry run does without.
    from datasets import Features, Value
    from datasets import Sequence as Many
    from datasets.arrow_writer import ArrowWriter

    features = Features(
        {
            **{name: Value("int32") for name in _INT_COLUMNS},
            "tokens": Many(Value("int32")),
            "labels": Many(Value("int32")),
        }
    )
    with ArrowWriter(path=str(path), features=features) as writer:
        for example, encoded in batch:
            spans = (example.fact, example.prompt, *encoded.subject, *encoded.object)
            writer.write(
                {
                    **dict(zip(_INT_COLUMNS, spans, strict=True)),
                    "tokens": encoded.tokens,
                    "labels": encoded.labels,
                }
            )
        writer.finalize()


def _file_entry(path: Path) -> dict[str, Any]:
    return {
        "name": path.name,
        "num_bytes": path.stat().st_size,
        "digest": file_digest(path),
    }


class ExampleShards:
    """Published examples of one phase, opened by memory map."""

    def __init__(self, directory: Path, *, digest: str) -> None:
        """Raises DataError where the manifest is missing, of another digest, or files are short."""
        from datasets import Dataset, concatenate_datasets

        manifest = read_manifest(directory)
        if manifest is None or manifest["digest"] != digest:
            found = "none" if manifest is None else manifest["digest"]
            raise DataError(
                f"{directory}: expected encoded data {digest}, found {found}; encode again"
            )
        for entry in (manifest["index"], *manifest["shards"]):
            path = directory / entry["name"]
            size = path.stat().st_size if path.exists() else 0
            if size != entry["num_bytes"]:
                raise DataError(
                    f"{path}: {size} bytes, the manifest says {entry['num_bytes']}; delete "
                    f"{directory} and run again"
                )
        self.num_rows: int = manifest["num_rows"]
        self.sources: dict[str, int] = manifest["sources"]
        """Source -> its number of rows, in the order of the rows."""
        raw = np.memmap(directory / INDEX, dtype=np.int32, mode="r")
        index: NDArray[np.int32] = raw.reshape(self.num_rows, 2)
        self.num_tokens = index[:, 0]
        self.num_targets = index[:, 1]
        self._table = concatenate_datasets(
            [Dataset.from_file(str(directory / shard["name"])) for shard in manifest["shards"]]
        )

    def examples(self, rows: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """(tokens, labels) of the given rows, in their order."""
        if rows:
            columns = self._table[list(rows)]
            yield from zip(columns["tokens"], columns["labels"], strict=True)

    def keys(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """(fact, prompt) of the given rows: which example it is, whatever it was encoded to."""
        columns = self._table[list(rows)]
        return list(zip(columns["fact"], columns["prompt"], strict=True))


def read_manifest(directory: StoragePath) -> dict[str, Any] | None:
    """The manifest of published examples; None where there is none.

    Raises DataError for a file that is no such manifest.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); delete {directory} and run again") from error
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise DataError(
            f"{path}: {manifest.get('format')!r} version {manifest.get('version')!r}, expected "
            f"{FORMAT!r} version {VERSION}; delete {directory} and run again"
        )
    return dict(manifest)
