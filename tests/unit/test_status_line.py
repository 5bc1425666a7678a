"""A run tells its state in lines of its own output, which are found there and not shown."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from launcher.account import Account, Progress, read_account
from launcher.history import Ending
from launcher.status_line import MARK, is_status, line_of, newest, newest_of, telling
from rotescale.activity import Activity
from rotescale.memory_gauge import MemoryPeak
from rotescale.pace import Straggler
from rotescale.records import EventRow, RecordWriter, StepRow
from rotescale.run_dir import Outcome, RunDir

TIME = "2026-11-27T12:00:00+00:00"
ACTIVITY = Activity(
    *("memorize", 7, 50),
    **{"epoch": 2, "loss": 1.25, "seconds_per_step": 0.5, "parts": {"forward": 0.6}},
    **{"flops_per_second": 1e12, "share_of_peak": 0.4, "later_seconds": 90.0},
)


def ending(number: int, reason: str = "why") -> Ending:
    return Ending(
        **{"number": number, "time": TIME, "kind": "infrastructure", "reason": reason},
        **{"exit_code": 4, "checkpoint": None},
    )


def event(message: str = "m", **details: Any) -> EventRow:
    return EventRow(attempt=1, time=TIME, name="hang", message=message, details=details)


FULL = Account(
    time=TIME,
    progress=Progress(2, ACTIVITY, "checkpoints/attempt-0002/01-memorize-step-000006-full"),
    outcome=Outcome(status="failed", attempt=2, exit_code=3, error="TrainingError", message="NaN"),
    endings=(ending(1),),
    stragglers=(Straggler(3, "node-3", 2.0),),
    memory=MemoryPeak(stage="memorize", moment="training", ranks=(5, 7)),
    events=(event(),),
)


def test_what_is_told_is_what_is_found() -> None:
    assert newest(["before", line_of(FULL), "after"]) == FULL
    assert newest([line_of(Account(time=TIME)), line_of(FULL), "x"]) == FULL
    assert newest(["before", "after"]) is None


def test_it_is_looked_for_among_the_last_lines_and_then_among_more() -> None:
    lines = [line_of(FULL), *("x" for _ in range(500))]
    asked: list[int] = []

    def tail(num_lines: int) -> list[str]:
        asked.append(num_lines)
        return lines[-num_lines:]

    assert newest_of(tail) == FULL
    assert len(asked) == 2
    lines.append(line_of(FULL))
    assert newest_of(tail) == FULL
    assert len(asked) == 3


def test_a_line_is_one_ascii_line_and_of_bounded_length() -> None:
    long = "ü\n" * 50_000
    big = FULL.model_copy(
        update={
            "endings": tuple(ending(number, long) for number in range(1, 60)),
            "events": tuple(event(long, blob=long) for _ in range(3)),
            "outcome": Outcome(status="failed", attempt=2, message=long),
            "stragglers": tuple(Straggler(rank, "node", 2.0) for rank in range(4096)),
        }
    )
    line = line_of(big)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert len(line) < 16_000
    found = newest([line])
    assert found is not None
    assert [one.number for one in found.endings] == [57, 58, 59]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"time": 3}', '{"progress": {}}'])
def test_a_line_that_cannot_be_read_is_passed_over(text: str) -> None:
    assert newest([line_of(FULL), MARK + text]) == FULL


def test_only_lines_that_begin_with_the_mark_are_hidden() -> None:
    assert is_status(line_of(FULL))
    assert not is_status(f"the driver says {MARK}")


def begun(root: Path) -> RunDir:
    """A run in its first attempt, after one step."""
    run_dir = RunDir(root)
    run_dir.attempts_dir.mkdir(parents=True)
    Path(str(run_dir.spec_json)).write_text("{}")
    attempt = '{"number": 1, "resumes": null, "started": "", "world_size": 1, "host": ""}'
    Path(str(run_dir.attempt(1))).write_text(attempt)
    add_step(run_dir, 1)
    return run_dir


def add_step(run_dir: RunDir, number: int) -> None:
    writer = RecordWriter(run_dir, attempt=1, rank=number, flush_seconds=0.0)
    row = StepRow(
        **{"attempt": 1, "phase": "memorize", "phase_index": 0, "step": number, "epoch": 1},
        **{"cursor": number, "loss": 1.5, "grad_norm": None, "learning_rate": 1e-3},
        **{"num_examples": 1, "num_tokens": 9, "target_tokens": 7, "seconds": 1.0},
    )
    writer.append(row)


def test_it_is_told_at_once_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    run_dir = begun(tmp_path / "run")
    lines: list[str] = []
    three = threading.Event()

    def write(line: str) -> None:
        lines.append(line)
        if len(lines) == 3:
            three.set()

    with telling(run_dir, every_seconds=0.05, write=write):
        assert three.wait(60)
        add_step(run_dir, 2)
        Outcome(status="finished", attempt=1).write(run_dir)
    found = [newest([line]) for line in lines]
    first, last = found[0], found[-1]
    assert first is not None
    assert first.progress is not None
    assert first.progress.activity.done == 1
    assert last is not None
    assert last.progress is not None
    assert last.progress.activity.done == 2
    assert last.outcome is not None
    assert last.model_copy(update={"time": TIME}) == read_again(run_dir)


def read_again(run_dir: RunDir) -> Account:
    found = read_account(run_dir)
    assert found is not None
    return found.model_copy(update={"time": TIME})


def test_a_folder_that_cannot_be_read_ends_nothing(tmp_path: Path) -> None:
    run_dir = begun(tmp_path / "run")
    Path(str(run_dir.outcome_json)).write_text("{")
    lines: list[str] = []
    with telling(run_dir, write=lines.append):
        pass
    with telling(RunDir(tmp_path / "none"), write=lines.append):
        pass
    assert lines == []


def test_the_supervisor_tells_between_the_drivers_lines_and_keeps_them_apart(
    tmp_path: Path,
) -> None:
    """Where it is asked to: on a machine of its own its log stays as the driver prints it."""
    run_dir = begun(tmp_path / "run")
    script = """
import sys
from pathlib import Path
from launcher.status_line import telling
from launcher.supervisor import Supervisor
from rotescale.run_dir import RunDir
run_dir = RunDir(Path(sys.argv[1]))
command = ("sh", "-c", "echo one; printf two")
with telling(run_dir, every_seconds=0.01):
    supervisor = Supervisor(
        run_dir,
        command,
        place="ray",
        launch="cluster",
        budgets=None,
        grace_seconds=0,
        say=print,
    )
    sys.exit(supervisor.run())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(run_dir.root)],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    told = newest(lines)
    assert is_status(lines[-1])
    assert told is not None
    assert [one.kind for one in told.endings] == ["finished"]
    assert [line for line in lines if not is_status(line)] == ["one", "two"]
    assert run_dir.numbered_driver_log(1).read_text() == "one\ntwo"
