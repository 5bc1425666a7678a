"""Shows a study while it goes on: a bar over its runs, and what each running one is doing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from rotescale.activity import activity_of
from rotescale.errors import RotescaleError
from rotescale.records import RecordReader
from rotescale.study.runner import StudyRunner

_POLL_SECONDS = 2.0
_ALL_DAY = 86_400.0
"""Runs take minutes each, so their pace is that of all so far."""


@contextmanager
def study_progress(runner: StudyRunner, *, console: Console) -> Iterator[None]:
    """A context in which the study's progress is on the screen, where that is a terminal."""
    if not console.is_terminal:
        yield
        return
    screen = _Screen(runner, console)
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(_POLL_SECONDS):
            screen.show()

    thread = threading.Thread(target=follow, name="study-progress", daemon=True)
    with screen.progress:
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            screen.show()


class _Screen:
    """The bar of all runs, and a few words on each that is going on."""

    def __init__(self, runner: StudyRunner, console: Console) -> None:
        self._runner = runner
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f} runs"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeLeft(compact=True),
            TextColumn("{task.fields[note]}"),
            console=console,
            speed_estimate_period=_ALL_DAY,
        )
        self._all = self.progress.add_task(
            runner.study.name, total=len(runner.plan.nodes), completed=self._finished(), note=""
        )
        # Of the runs that are going on: a reader keeps the rows that it has read.
        self._readers: dict[str, RecordReader] = {}
        # The pace is measured from here on; of itself it would begin with the first run's end.
        self.progress.advance(self._all, 0)

    def show(self) -> None:
        """Bring it up to date."""
        self.progress.update(self._all, completed=self._finished(), note=self._doing())

    def _finished(self) -> int:
        return sum(status == "finished" for status in self._runner.status.values())

    def _doing(self) -> str:
        running = [name for name, status in self._runner.status.items() if status == "running"]
        self._readers = {name: one for name, one in self._readers.items() if name in running}
        start = f"{self._runner.study.name}-"
        return "; ".join(f"{name.removeprefix(start)}: {self._words(name)}" for name in running)

    def _words(self, name: str) -> str:
        if name not in self._readers:
            self._readers[name] = RecordReader(self._runner.folder.run(name))
        try:
            activity = activity_of(self._readers[name].read())
        except (RotescaleError, OSError):
            # Only what is shown: a run says by itself what is wrong with its folder.
            activity = None
        return "starting" if activity is None else str(activity)
