"""The watchdog: a stage that takes too long dumps all stacks into the run and ends the process."""

from __future__ import annotations

import faulthandler
from pathlib import Path
from typing import Literal

from rotescale.launch_spec import StageLimits
from rotescale.storage import writing

Stage = Literal["load", "first_step", "step", "evaluation", "save"]


class Watchdog:
    """Armed anew at each step and stage; a process that hangs is ended, and its peers see it."""

    def __init__(self, log: Path, limits: StageLimits) -> None:
        """Stacks go to ``log``. Raises StorageError where it cannot be written."""
        with writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            self._file = log.open("a", encoding="utf-8")
        self._limits = limits

    def arm(self, stage: Stage) -> None:
        """Start the countdown of ``stage`` from its limit."""
        seconds = getattr(self._limits, f"{stage}_seconds")
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)

    def close(self) -> None:
        """Stop the countdown."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
