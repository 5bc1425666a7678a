"""Rows are written once, read once, and a step that was done again counts once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rotescale.errors import CheckpointError, StorageError
from rotescale.records import (
    EvaluationRow,
    EventRow,
    RecordReader,
    Records,
    RecordWriter,
    StepRow,
    best_steps,
    read_records,
)
from rotescale.run_dir import RunDir, SegmentName
from rotescale.spec import BestOf


def step_row(attempt: int, step: int, **changes: Any) -> StepRow:
    fields: dict[str, Any] = {
        "attempt": attempt,
        "phase": "memorize",
        "phase_index": 0,
        "step": step,
        "epoch": 1,
        "cursor": 8 * step,
        "loss": 1.0 / step,
        "grad_norm": 0.5,
        "learning_rate": 1e-4,
        "num_examples": 8,
        "num_tokens": 96,
        "target_tokens": 90,
        "seconds": 0.1,
        "example_ids": tuple(range(8)),
    }
    return StepRow(**{**fields, **changes})


def evaluation_row(attempt: int, value: float, **changes: Any) -> EvaluationRow:
    fields: dict[str, Any] = {
        "attempt": attempt,
        "relation": "mother",
        "stage": "memorize",
        "epoch": 3,
        "seed": 0,
        "suite": "core",
        "split": "held_out",
        "prompts": "test",
        "language": "en",
        "metric": "accuracy",
        "value": value,
        "count": 50,
        "low": value - 0.1,
        "high": value + 0.1,
    }
    return EvaluationRow(**{**fields, **changes})


def event_row(attempt: int, time: str, name: str = "start") -> EventRow:
    return EventRow(attempt=attempt, time=time, name=name, message="", details={"a": [1, "b"]})


def write(run_dir: RunDir, attempt: int, *rows: Any, rank: int = 0) -> None:
    writer = RecordWriter(run_dir, attempt=attempt, rank=rank)
    for row in rows:
        writer.append(row)
    writer.close()


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    step, value, event = step_row(1, 1), evaluation_row(1, 0.5), event_row(1, "2026-01-02T03:04:05")
    write(run_dir, 1, step, value, event)
    records = read_records(run_dir, example_ids=True)
    assert records.steps == (step,)
    assert records.evaluations == (value,)
    assert records.events == (event,)
    assert read_records(RunDir(tmp_path / "nothing")).steps == ()
    # A long run has millions of them, and few ask.
    assert read_records(run_dir).steps == (step_row(1, 1).model_copy(update={"example_ids": ()}),)


def test_a_segment_is_written_every_few_seconds_and_never_again(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    now = [0.0]
    writer = RecordWriter(run_dir, attempt=3, rank=0, flush_seconds=5, clock=lambda: now[0])
    path = tmp_path / "records/attempt-0003/rank-00000/segment-000001.jsonl"
    writer.append(step_row(3, 1))
    assert not path.exists()
    now[0] = 5.0
    writer.append(step_row(3, 2))
    first = path.read_bytes()
    assert first.count(b"\n") == 2
    writer.append(step_row(3, 3))
    assert len(run_dir.record_segments()) == 1
    writer.flush()
    writer.flush()
    writer.close()
    assert run_dir.record_segments() == [SegmentName(3, 0, 1), SegmentName(3, 0, 2)]
    assert path.read_bytes() == first
    assert [row.step for row in read_records(run_dir).steps] == [1, 2, 3]


def test_a_second_writer_of_the_same_attempt_is_refused(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write(run_dir, 1, step_row(1, 1))
    with pytest.raises(StorageError, match="another process records as attempt 1, rank 0"):
        write(run_dir, 1, step_row(1, 2))
    assert [row.step for row in read_records(run_dir).steps] == [1]


def test_steps_done_again_count_once(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write(run_dir, 1, *(step_row(1, step) for step in range(1, 8)))
    write(run_dir, 2, step_row(2, 5), step_row(2, 6))
    write(run_dir, 2, step_row(2, 1, phase_index=1, phase="generalize"), rank=1)
    steps = read_records(run_dir).steps
    assert [(row.phase_index, row.step, row.attempt) for row in steps] == [
        *((0, step, 1) for step in (1, 2, 3, 4)),
        (0, 5, 2),
        (0, 6, 2),
        # Nobody has done step 7 again yet.
        (0, 7, 1),
        (1, 1, 2),
    ]


def test_a_zombie_does_not_win_by_writing_last(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    zombie = RecordWriter(run_dir, attempt=1, rank=0)
    zombie.append(step_row(1, 4, loss=1.0))
    zombie.flush()
    write(run_dir, 2, step_row(2, 5, loss=2.0))
    zombie.append(step_row(1, 5, loss=3.0))
    zombie.close()
    assert [row.loss for row in read_records(run_dir).steps] == [1.0, 2.0]


def test_a_reader_opens_each_segment_once_and_says_what_a_fresh_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir(tmp_path)
    opened: list[str] = []
    read_bytes = Path.read_bytes

    def counting(path: Path) -> bytes:
        opened.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counting)
    reader = RecordReader(run_dir)
    assert reader.read().steps == ()
    write(run_dir, 1, step_row(1, 1), event_row(1, "2026-01-02T03:04:05"))
    assert [row.step for row in reader.read().steps] == [1]
    write(run_dir, 3, step_row(3, 1), step_row(3, 2), evaluation_row(3, 0.5))
    reader.read()
    # A dead attempt's last segment is seen late, and does not win.
    write(run_dir, 2, step_row(2, 1), evaluation_row(2, 0.1), event_row(2, "2026-01-02T03:05:00"))
    found = reader.read()
    assert [(row.attempt, row.step) for row in found.steps] == [(3, 1), (3, 2)]
    assert [row.value for row in found.evaluations] == [0.5]
    assert len(opened) == 3
    assert found == read_records(run_dir)


def test_the_latest_attempt_measures(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write(run_dir, 1, evaluation_row(1, 0.5), evaluation_row(1, 0.1, metric="margin"))
    write(run_dir, 2, evaluation_row(2, 0.6))
    values = {row.metric: row.value for row in read_records(run_dir).evaluations}
    assert values == {"accuracy": 0.6, "margin": 0.1}


def test_events_are_all_kept_in_order(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write(run_dir, 2, event_row(2, "2026-01-02T03:00:00", "again"))
    write(run_dir, 1, event_row(1, "2026-01-02T02:00:00", "later"), rank=0)
    write(run_dir, 1, event_row(1, "2026-01-02T01:00:00", "first"), rank=1)
    assert [row.name for row in read_records(run_dir).events] == ["first", "later", "again"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-5], "segment-000001.jsonl, line 2: cut off"),
        (lambda data: b"", "line 1: cut off"),
        (lambda data: data.replace(b'"loss"', b'"lost"', 1), "line 1: step.loss: Field required"),
        (lambda data: data + b"\xff\xfe\n", "line 3: row: Invalid JSON"),
        (lambda data: data.replace(b'"attempt":1', b'"attempt":2'), "line 1: a row of attempt 2"),
    ],
)
def test_a_damaged_segment_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    run_dir = RunDir(tmp_path)
    write(run_dir, 1, step_row(1, 1), step_row(1, 2))
    path = run_dir.record_segment(SegmentName(1, 0, 1))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        read_records(run_dir)


def test_unfinished_files_are_ignored(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write(run_dir, 1, step_row(1, 1))
    folder = run_dir.record_segment(SegmentName(1, 0, 1)).parent
    (folder / ".segment-000002.jsonl.x1.tmp").write_text('{"kind": "st')
    assert len(read_records(run_dir).steps) == 1


def test_a_value_that_is_not_finite_is_no_record() -> None:
    with pytest.raises(ValueError, match="finite"):
        step_row(1, 1, loss=float("nan"))


def test_the_best_is_chosen_in_english_whatever_else_was_asked() -> None:
    steps = tuple(step_row(1, step=10 * epoch, epoch=epoch) for epoch in (1, 2))
    rows = [
        evaluation_row(1, value, epoch=epoch, language=language, metric="multiple_choice")
        for language, values in (("en", (0.2, 0.4)), ("de", (0.9, 0.1)))
        for epoch, value in enumerate(values, start=1)
    ]
    records = Records(steps=steps, evaluations=tuple(rows), events=())
    best = BestOf(prompts="test", split="held_out")
    assert best_steps(records, best) == {("memorize", 20)}
    # By default nothing that is reported of the chosen one is what it is chosen by.
    assert best_steps(records, BestOf()) == set()
