"""Encoded examples on storage: Arrow shards and an index, published by a manifest written last."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rotescale.data.encoding import IGNORE, Encoded
from rotescale.data.examples import Example
from rotescale.errors import DataError, RotescaleError
from rotescale.storage import StoragePath, file_digest, write_atomic, writing

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "rotescale-examples"
VERSION = 2
MANIFEST = "manifest.json"
INDEX = "index.bin"
ROWS_PER_SHARD = 200_000
ROWS_PER_BATCH = 2_000
"""Rows that are held at once while they are encoded: a record batch of the file."""

_INT_COLUMNS = (
    "fact",
    "prompt",
    "subject_start",
    "subject_stop",
    "object_start",
    "object_stop",
)


Row = tuple[Example, Encoded]


class Encodable(Protocol):
    """Examples of one source that are encoded when they are asked for, by any process."""

    def __len__(self) -> int:
        """How many examples there are."""

    def rows(self, start: int, stop: int) -> Iterable[Row]:
        """The examples ``[start, stop)`` with their encoding."""


def write_shards(
    sources: Mapping[str, Encodable | Iterable[Row]],
    directory: Path,
    *,
    digest: str,
    rows_per_shard: int = ROWS_PER_SHARD,
    num_processes: int = 1,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Write the examples of all sources to ``directory``, one source after the other.

    The directory exists for readers once its manifest does. The index holds (num_tokens,
    num_targets) of each example, int32, so that packing and loss need not open a shard. Memory does
    not grow with the number of examples. What is encodable is written by ``num_processes`` at once,
    a shard each; the files do not depend on how many. ``progress`` is told the rows written.

    Raises StorageError where the storage is full or not writable, and RotescaleError where a
    process is killed; what is half-written is no folder of examples, and written anew the next
    time.
    """
    with writing(directory):
        if directory.exists() and not (directory / MANIFEST).exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files: list[dict[str, Any]] = []
        num_rows_of = dict.fromkeys(sources, 0)
        longest = (-1, 0)
        with (directory / INDEX).open("wb") as index, _Team(sources, num_processes) as team:
            for name, counts in team.write_all(directory, rows_per_shard=rows_per_shard):
                index.write(counts.tobytes())
                first, row = sum(num_rows_of.values()), int(counts[:, 0].argmax())
                longest = max(longest, (first + row, int(counts[row, 0])), key=lambda one: one[1])
                path = directory / _shard_name(len(files))
                files.append({**_file_entry(path), "num_rows": len(counts)})
                num_rows_of[name] += len(counts)
                progress(sum(num_rows_of.values()))
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "digest": digest,
            "num_rows": sum(num_rows_of.values()),
            "sources": num_rows_of,
            "longest": longest,
            "index": _file_entry(directory / INDEX),
            "shards": files,
        }
        write_atomic(directory / MANIFEST, json.dumps(manifest, indent=2).encode())


Counts = NDArray[np.int32]


class _Team:
    """Writes shards in order, the encodable ones in processes of their own where there are some.

    Where one of them fails, or this one is interrupted, the others are ended at once.
    """

    def __init__(
        self, sources: Mapping[str, Encodable | Iterable[Row]], num_processes: int
    ) -> None:
        self._sources = sources
        self._before = set(active_children())
        self._processes: ProcessPoolExecutor | None = None
        if num_processes > 1:
            shared = {
                name: source for name, source in sources.items() if not isinstance(source, Iterable)
            }
            # A fresh interpreter, not a fork: this process may hold threads and their locks.
            self._processes = ProcessPoolExecutor(
                num_processes,
                mp_context=get_context("spawn"),
                initializer=_begin,
                initargs=(shared,),
            )

    def __enter__(self) -> _Team:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._processes is None:
            return
        if value is not None:
            for process in set(active_children()) - self._before:
                process.terminate()
        self._processes.shutdown(cancel_futures=True)

    def write_all(self, directory: Path, *, rows_per_shard: int) -> Iterator[tuple[str, Counts]]:
        """The source and the counts (n, 2) int32 of each shard, in order, once it is written."""
        number = 0
        for name, source in self._sources.items():
            if isinstance(source, Iterable):
                rest = iter(source)
                # A source that gives nothing has no shard.
                while first := list(islice(rest, 1)):
                    path = directory / _shard_name(number)
                    yield name, _write_shard(chain(first, islice(rest, rows_per_shard - 1)), path)
                    number += 1
                continue
            tasks = [
                _Task(
                    name,
                    start,
                    min(start + rows_per_shard, len(source)),
                    directory / _shard_name(number + place),
                )
                for place, start in enumerate(range(0, len(source), rows_per_shard))
            ]
            number += len(tasks)
            for counts in self._done(tasks, source):
                yield name, counts

    def _done(self, tasks: Sequence[_Task], source: Encodable) -> Iterator[Counts]:
        if self._processes is None:
            for task in tasks:
                yield _write_shard(source.rows(task.start, task.stop), task.path)
            return
        try:
            yield from self._processes.map(_write_task, tasks)
        except BrokenProcessPool as error:
            raise RotescaleError(
                "a process that encoded examples was killed, for want of memory or by hand; start "
                "again with more memory, and they are encoded anew"
            ) from error


class _Task(NamedTuple):
    """A shard to write: which rows of which source, and where."""

    source: str
    start: int
    stop: int
    path: Path


_shared: dict[str, Encodable] = {}
"""In a process of its own: the sources, sent once."""


def _begin(sources: dict[str, Encodable]) -> None:
    """In a process of its own: take the sources, and live no longer than who has started it.

    Ctrl-C reaches the whole group of processes; the first of them ends the others.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # There is a process to a core already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _shared.update(sources)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_task(task: _Task) -> Counts:
    return _write_shard(_shared[task.source].rows(task.start, task.stop), task.path)


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.arrow"


def _write_shard(rows: Iterable[Row], path: Path) -> Counts:
    """Write one shard; returns (num_tokens, num_targets) of each row."""
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
    counts = []
    rest = iter(rows)
    with ArrowWriter(path=str(path), features=features) as writer:
        while batch := list(islice(rest, ROWS_PER_BATCH)):
            table, counted = _columns(batch)
            writer.write_table(table)
            counts.append(counted)
        writer.finalize()
    return np.concatenate(counts)


def _columns(batch: Sequence[Row]) -> tuple[pa.Table, Counts]:
    """The rows as columns, and their (num_tokens, num_targets)."""
    import pyarrow as pa

    spans = np.array(
        [(e.fact, e.prompt, *encoded.subject, *encoded.object) for e, encoded in batch], np.int32
    )
    lengths = np.array([len(encoded.tokens) for _, encoded in batch], np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = np.fromiter(chain.from_iterable(encoded.tokens for _, encoded in batch), np.int32)
    labels = np.fromiter(chain.from_iterable(encoded.labels for _, encoded in batch), np.int32)
    targets = np.add.reduceat(labels != IGNORE, starts[:-1], dtype=np.int32)
    columns = {name: spans[:, place] for place, name in enumerate(_INT_COLUMNS)}
    lists = {
        name: pa.ListArray.from_arrays(starts, values)
        for name, values in (("tokens", tokens), ("labels", labels))
    }
    return pa.table({**columns, **lists}), np.stack([lengths, targets], axis=1)


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
