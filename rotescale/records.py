"""Records: typed rows of steps, evaluations and events, in immutable segments. No torch."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rotescale.errors import CheckpointError, StorageError
from rotescale.run_dir import RunDir, SegmentName
from rotescale.spec import BASE_LANGUAGE, BestOf
from rotescale.storage import create_exclusive, make_folder


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StepRow(_Row):
    """One optimizer step, over all workers."""

    kind: Literal["step"] = "step"
    attempt: int
    phase: str
    phase_index: int
    step: int
    """Steps done in this phase, this one included."""
    epoch: int
    cursor: int
    """Examples consumed in this phase, this step's included."""
    loss: float
    """Mean over the global batch's target tokens."""
    grad_norm: float | None
    """Global norm before clipping."""
    learning_rate: float
    num_examples: int
    num_tokens: int
    target_tokens: int
    seconds: float
    parts: dict[str, float] = Field(default_factory=dict)
    """Seconds of each of ``step_clock.PARTS`` on rank 0, rounded to microseconds."""
    example_ids: tuple[int, ...] = ()
    """The examples of the step, in order."""


class EvaluationRow(_Row):
    """One measured value: a row of results.json."""

    kind: Literal["evaluation"] = "evaluation"
    attempt: int
    relation: str
    stage: str
    """``base`` or the name of a phase."""
    epoch: int | None
    """The epoch after which it was measured on the way; None at the end of the stage."""
    seed: int
    suite: str
    split: str
    prompts: str
    language: str
    metric: str
    value: float
    count: int
    """How many items the value is a mean over."""
    low: float | None
    high: float | None
    """The 95 % interval; None where there is none."""
    layer: int | None = None
    """Of which layer's hidden states, 0 for the embeddings; None where it is about no layer."""

    @property
    def key(self) -> tuple[str | int | None, ...]:
        """What is measured; a later attempt's row of the same key replaces an earlier one's."""
        return (
            *(self.relation, self.stage, self.epoch, self.seed, self.suite),
            *(self.split, self.prompts, self.language, self.metric, self.layer),
        )


class EventRow(_Row):
    """Something that happened once: a start, a checkpoint, a preemption, an export."""

    kind: Literal["event"] = "event"
    attempt: int
    time: str
    """UTC, ISO 8601."""
    name: str
    message: str
    details: dict[str, Any] = Field(default_factory=dict)


Row = StepRow | EvaluationRow | EventRow
_ROW: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="kind")])


ALL_RELATIONS = "all"
"""What a row over several relations says in place of one's name."""

_NO_EXAMPLES: dict[str, tuple[int, ...]] = {"example_ids": ()}
_Key = TypeVar("_Key")
_Kept = TypeVar("_Kept", StepRow, EvaluationRow)


@dataclass(frozen=True, slots=True)
class Records:
    """The rows of a run, without those that a later attempt did again."""

    steps: tuple[StepRow, ...]
    """By phase and step, each once."""
    evaluations: tuple[EvaluationRow, ...]
    """Each key once."""
    events: tuple[EventRow, ...]
    """All, by attempt and time."""


class RecordWriter:
    """Collects the rows of one rank and writes them as segments, each once and whole.

    Object stores cannot append and a crash cuts a line in two, so no file is ever appended to.
    """

    def __init__(
        self,
        run_dir: RunDir,
        *,
        attempt: int,
        rank: int,
        flush_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir = run_dir
        self._next = SegmentName(attempt, rank, 1)
        self._flush_seconds = flush_seconds
        self._clock = clock
        self._lines: list[str] = []
        self._flushed_at = clock()
        # A background thread that saves a checkpoint records events too.
        self._lock = threading.Lock()

    def append(self, row: Row) -> None:
        """Take a row, and write a segment if the last one is some seconds ago."""
        with self._lock:
            self._lines.append(row.model_dump_json() + "\n")
            if self._clock() - self._flushed_at >= self._flush_seconds:
                self._write_segment()

    def flush(self) -> None:
        """Write the rows taken since the last segment; nothing where there are none."""
        with self._lock:
            self._write_segment()

    def close(self) -> None:
        """Write what is left."""
        self.flush()

    def _write_segment(self) -> None:
        self._flushed_at = self._clock()
        if not self._lines:
            return
        name = self._next
        path = self._run_dir.record_segment(name)
        make_folder(path.parent)
        if not create_exclusive(path, "".join(self._lines).encode()):
            raise StorageError(
                f"{path}: exists already; another process records as attempt {name.attempt}, rank "
                f"{name.rank}: stop it, or start a new attempt"
            )
        self._lines.clear()
        self._next = SegmentName(name.attempt, name.rank, name.number + 1)


class RecordReader:
    """Reads a run's rows again and again: a segment never changes, so each is read once.

    ``example_ids``: whether steps keep theirs, of which a long run has millions.
    """

    def __init__(self, run_dir: RunDir, *, example_ids: bool = False) -> None:
        self._run_dir = run_dir
        self._example_ids = example_ids
        self._seen: set[SegmentName] = set()
        self._steps: dict[tuple[int, int], StepRow] = {}
        self._ordered: tuple[StepRow, ...] = ()
        self._evaluations: dict[tuple[str | int | None, ...], EvaluationRow] = {}
        self._events: list[EventRow] = []

    def read(self, *, to_the_last: bool = False) -> Records:
        """All rows so far; of what several attempts did, the highest attempt's rows.

        An object store may not list the latest segments yet; ``to_the_last`` misses none of rank 0.

        A dead attempt's steps past the resume point of its successor stay until the successor, or
        a later attempt, has done them again. Raises CheckpointError for a segment that is damaged.
        """
        has_steps = False
        for name in self._run_dir.record_segments(to_the_last=to_the_last):
            if name in self._seen:
                continue
            for row in _read_segment(self._run_dir, name):
                match row:
                    case StepRow():
                        kept = row if self._example_ids else row.model_copy(update=_NO_EXAMPLES)
                        _keep_highest(self._steps, (row.phase_index, row.step), kept)
                        has_steps = True
                    case EvaluationRow():
                        _keep_highest(self._evaluations, row.key, row)
                    case EventRow():
                        self._events.append(row)
            self._seen.add(name)
        self._events.sort(key=lambda event: (event.attempt, event.time))
        if has_steps:
            self._ordered = tuple(self._steps[key] for key in sorted(self._steps))
        return Records(self._ordered, tuple(self._evaluations.values()), tuple(self._events))


def read_records(run_dir: RunDir, *, example_ids: bool = False) -> Records:
    """All rows of the run, as ``RecordReader.read`` gives them, to the last."""
    return RecordReader(run_dir, example_ids=example_ids).read(to_the_last=True)


def best_steps(records: Records, best: BestOf) -> set[tuple[str, int]]:
    """(phase, step) of each phase's highest value on the way; of equals the first.

    Of the core suite; over several relations their mean counts, and of several languages English
    alone. Phases that were not measured yet are left out.
    """
    values: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in records.evaluations:
        wanted = ("core", best.metric, best.prompts, best.split, BASE_LANGUAGE)
        is_wanted = (row.suite, row.metric, row.prompts, row.split, row.language) == wanted
        if is_wanted and row.epoch is not None and row.relation != ALL_RELATIONS:
            values[row.stage, row.epoch].append(row.value)
    means = {key: sum(found) / len(found) for key, found in sorted(values.items())}
    ends = {(row.phase, row.epoch): row.step for row in records.steps}
    found: set[tuple[str, int]] = set()
    for phase in {stage for stage, _ in means}:
        epochs = [epoch for stage, epoch in means if stage == phase]
        step = ends.get((phase, max(epochs, key=lambda epoch: means[phase, epoch])))
        if step is not None:
            found.add((phase, step))
    return found


def _keep_highest(rows: dict[_Key, _Kept], key: _Key, row: _Kept) -> None:
    """Keep the highest attempt's row, also where a dead attempt's segment is seen late."""
    kept = rows.get(key)
    if kept is None or row.attempt >= kept.attempt:
        rows[key] = row


def _read_segment(run_dir: RunDir, name: SegmentName) -> list[Row]:
    path = run_dir.record_segment(name)
    *lines, rest = path.read_bytes().split(b"\n")
    if rest or not lines:
        raise CheckpointError(
            f"{path}, line {len(lines) + 1}: cut off; restore the file, or delete it and lose its "
            "rows"
        )
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = _ROW.validate_json(line)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in problem["loc"]) or "row"
            raise CheckpointError(
                f"{path}, line {number}: {field}: {problem['msg']}; restore the file, or delete "
                "it and lose its rows"
            ) from None
        if row.attempt != name.attempt:
            raise CheckpointError(
                f"{path}, line {number}: a row of attempt {row.attempt} in the folder of attempt "
                f"{name.attempt}; restore the records folder"
            )
        rows.append(row)
    return rows
