"""The watchdog: a stage that takes too long dumps all stacks into the run and ends the process."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rotescale.launch_spec import StageLimits
from rotescale.storage import writing

Stage = Literal["start", "load", "first_step", "step", "evaluation", "save"]

EXIT_CODE = 75
"""Of a process that was ended because it hung: a temporary failure, in the words of sysexits.h."""
_BACKSTOP_SECONDS = 60.0
_FAREWELL_SECONDS = 20.0
_LAST_WORD_SECONDS = 2.0
"""How long a process that waits for its peers outlives them, for the one that is at fault has hung
as long, and all are ended once one has failed."""


class Watchdog:
    """Armed anew at each step and stage; a process that hangs is ended, and its peers see it.

    A thread of its own writes the stacks and calls ``on_hang``, which may record the hang and
    carry the log away, within limits. Where even that thread cannot run, since somebody holds the
    interpreter's lock, a timer in C writes the stacks a minute later and ends the process.
    """

    def __init__(self, log: Path, limits: StageLimits) -> None:
        """Stacks go to ``log``. Raises StorageError where it cannot be written."""
        with writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            self._file = log.open("a", encoding="utf-8")
        self.log = log
        """The file that takes the stacks."""
        self._limits = limits
        self._stage: Stage = "start"
        self._deadline: float | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._alone = False
        self.on_hang: Callable[[str], None] = lambda message: None
        """Told of a hang, in a thread of its own, before the process ends."""
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def arm(self, stage: Stage) -> None:
        """Start the countdown of ``stage`` from its limit."""
        seconds = self._limit(stage)
        with self._changed:
            self._stage = stage
            self._deadline = time.monotonic() + seconds
            self._changed.notify()
        backstop = seconds + _BACKSTOP_SECONDS
        faulthandler.dump_traceback_later(backstop, exit=True, file=self._file)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What is done within is this process's own: it waits for no other rank."""
        self._alone = True
        try:
            yield
        finally:
            self._alone = False

    @property
    def is_alone(self) -> bool:
        """Whether the process is within ``alone``: a hang there is the fault of its node."""
        return self._alone

    def close(self) -> None:
        """Stop the countdown."""
        faulthandler.cancel_dump_traceback_later()
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._file.close()

    def _limit(self, stage: Stage) -> float:
        return float(getattr(self._limits, f"{stage}_seconds"))

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            else:
                return
            stage = self._stage
        self._end(f"{stage} took longer than {self._limit(stage):g} s (limits.{stage}_seconds)")

    def _end(self, message: str) -> None:
        self._file.write(f"hang: {message}; the stacks of all threads:\n")
        self._file.flush()
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        # Storage may be what hangs, so nothing is waited for without limit.
        farewell = threading.Thread(target=self.on_hang, args=(message,), daemon=True)
        farewell.start()
        farewell.join(_FAREWELL_SECONDS)
        if not self._alone:
            time.sleep(_LAST_WORD_SECONDS)
        os._exit(EXIT_CODE)
