"""What a run prints while it goes on, where the output is a file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from record_rows import event, step
from rich.console import Console

from rotescale.analysis.progress import RunProgress
from rotescale.records import EventRow, RecordWriter, Row
from rotescale.run_dir import RunDir

LONG = "memorize step 57: full, [X:author], of which training waited 0.0 s, " + "and so on " * 20


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A run that is followed, and what is printed of it."""

    def __init__(self, folder: Path, *, terminal: bool, interactive: bool | None = None) -> None:
        self.clock, self.output = Clock(), io.StringIO()
        self.records = RecordWriter(RunDir(folder), attempt=1, rank=0)
        self.progress = RunProgress(
            RunDir(folder),
            {"memorize": 9},
            console=Console(
                file=self.output,
                width=80,
                force_terminal=terminal,
                force_interactive=interactive,
            ),
            # Nothing looks but the test.
            poll_seconds=3600.0,
            clock=self.clock,
        )

    def lines(self, *rows: Row, seconds: float = 61.0) -> list[str]:
        """What has been printed once the rows are there and the time has passed."""
        for row in rows:
            self.records.append(row)
        self.records.flush()
        self.clock.now += seconds
        self.output.truncate(self.output.seek(0))
        self.progress._show()
        return re.sub(r"\x1b\[[0-9;]*m", "", self.output.getvalue()).splitlines()


@pytest.fixture(params=["a file", "a terminal that draws nothing"])
def in_a_file(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    watched = Watched(tmp_path, terminal=request.param != "a file", interactive=False)
    with watched.progress:
        yield watched


def test_a_line_now_and_then_tells_how_far_it_is(in_a_file: Watched) -> None:
    lines = in_a_file.lines
    assert lines(seconds=1.0) == []
    asked = event("evaluation", stage="base", done=3, total=20, what="questions")
    assert lines(asked, seconds=1.0) == [], "not before the first minute is over"
    assert lines() == ["  evaluate base 3/20"]
    assert lines() == [], "nothing has changed"
    asked = event("evaluation", stage="base", done=20, total=20, what="questions")
    begins = event("phase", phase="memorize", total_steps=9)
    first = step(1, seconds=10.0)
    assert lines(asked, begins, first) == ["  memorize 1/9, loss 1.500, 0:01:20 left in this phase"]
    assert lines(step(2, seconds=10.0), seconds=5.0) == []
    assert lines(step(3, seconds=10.0)) == [
        "  memorize 3/9, loss 1.500, 0:01:00 left in this phase"
    ]


def test_no_time_is_told_that_nobody_waits_for(in_a_file: Watched) -> None:
    begins = event("phase", phase="memorize", total_steps=2**53)
    assert in_a_file.lines(begins, step(1)) == [f"  memorize 1/{2**53}, loss 1.500"]


def test_what_happens_is_one_line_however_long(in_a_file: Watched) -> None:
    saved = EventRow(attempt=1, time="t", name="checkpoint", message=LONG)
    assert in_a_file.lines(saved, seconds=1.0) == [f"  checkpoint: {LONG}"]


def test_a_terminal_has_bars_for_it(tmp_path: Path) -> None:
    watched = Watched(tmp_path, terminal=True)
    with watched.progress:
        lines = watched.lines(event("phase", phase="memorize", total_steps=9), step(1))
        assert not any("left" in line for line in lines)
        saved = EventRow(attempt=1, time="t", name="checkpoint", message=LONG)
        printed = [line for line in watched.lines(saved) if "checkpoint" in line]
    assert printed
    assert "[X:author]" in printed[0]
