"""Shows a run while it goes on, from its records: a bar a stage, with loss, tokens/s and ETA.

Where the output is no terminal that bars can be drawn on, a line now and then says how far it is.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from rotescale.activity import activity_of
from rotescale.analysis.tensorboard import TensorBoardWriter
from rotescale.errors import CheckpointError, StorageUnavailableError
from rotescale.records import EventRow, RecordReader, Records, StepRow
from rotescale.run_dir import RunDir

_RECENT_STEPS = 20
_CENTURY = 3e9
_VERBS = {"hidden states": "states", "benchmark requests": "benchmarks"}
"""What is done where an evaluation counts these."""


class RunProgress:
    """A context in which the run's progress is on the screen, and in TensorBoard's files."""

    def __init__(
        self,
        run_dir: RunDir,
        total_steps: dict[str, int],
        *,
        console: Console,
        poll_seconds: float = 1.0,
        line_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``total_steps`` maps each phase, in order, to its number of optimizer steps.

        ``line_seconds``: how often a line is printed where bars cannot be drawn.
        """
        self._records = RecordReader(run_dir)
        self._total_steps = total_steps
        self._console = console
        self._poll_seconds = poll_seconds
        self._line_seconds = line_seconds
        self._clock = clock
        self._said = ""
        self._say_after = clock() + line_seconds
        self._progress = Progress(
            TextColumn("{task.description:<19}"),
            BarColumn(bar_width=10),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeLeft(compact=True),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._shown_events = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._tensorboard = TensorBoardWriter(run_dir.tensorboard_dir)

    def __enter__(self) -> RunProgress:
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._show()
        self._progress.stop()
        self._tensorboard.close()

    def _follow(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            self._show()

    def _show(self) -> None:
        try:
            records = self._records.read()
        except (CheckpointError, FileNotFoundError, StorageUnavailableError):
            # A segment that is being replaced is whole at the next look; training judges it.
            return
        for event in records.events[self._shown_events :]:
            self._show_event(event)
        self._shown_events = len(records.events)
        self._show_steps(records)
        if not self._console.is_interactive and self._clock() >= self._say_after:
            self._say(records)
        self._tensorboard.update(records)

    def _show_event(self, event: EventRow) -> None:
        if event.name == "evaluation":
            details = event.details
            verb = _VERBS.get(str(details.get("what")), "evaluate")
            task = self._task(f"{verb} {details['stage']}", total=details["total"])
            self._progress.update(task, completed=details["done"])
        elif event.name in ("attempt", "preflight", "resumed", "checkpoint", "export"):
            self._print(f"{event.name}: {event.message}", style="dim")
        elif event.name in ("damaged", "node-excluded"):
            self._print(f"{event.name}: {event.message}", style="bold red")

    def _print(self, text: str, *, style: str = "") -> None:
        # A message may hold brackets, and a line of a file is one line however long.
        is_file = not self._console.is_interactive
        self._console.print(
            f"  {text}", style=style, markup=False, highlight=False, soft_wrap=is_file
        )

    def _say(self, records: Records) -> None:
        """Print a line on what goes on, unless it is as it was."""
        activity = activity_of(records)
        if activity is None or str(activity) == self._said:
            return
        self._said, self._say_after = str(activity), self._clock() + self._line_seconds
        left, told = activity.seconds_left, ""
        if left is not None and 0 < left < _CENTURY:
            told = f", {timedelta(seconds=round(left))} left in this phase"
        self._print(f"{activity}{told}")

    def _show_steps(self, records: Records) -> None:
        begin = 0
        for index, (phase, total) in enumerate(self._total_steps.items()):
            end = bisect_right(records.steps, index, key=lambda step: step.phase_index)
            if end > begin:
                recent = records.steps[max(begin, end - _RECENT_STEPS) : end]
                task = self._task(f"train {phase}", total=total)
                self._progress.update(task, completed=recent[-1].step, note=_note(recent))
            begin = end

    def _task(self, name: str, *, total: int) -> TaskID:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note="")
        return self._tasks[name]


def _note(recent: Sequence[StepRow]) -> str:
    seconds = sum(step.seconds for step in recent)
    rate = sum(step.num_tokens for step in recent) / seconds if seconds else 0.0
    return f"loss {recent[-1].loss:.3f}  {rate:.0f} tokens/s"
