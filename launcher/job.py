"""A job: what a launcher starts, and the states that it can be in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rotescale.run_dir import RunDir

JobState = Literal["pending", "running", "finished", "failed", "stopped", "unknown"]
"""``pending``: started, no worker yet. ``running``: an attempt is at work. ``finished`` and
``failed``: for good, as the run's outcome says. ``stopped``: nothing runs and there is no outcome,
so the run can go on. ``unknown``: nothing here tells."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """Everything that is needed to start a run, and to find it again."""

    name: str
    """Name of the experiment, and of its run folder."""
    command: tuple[str, ...]
    """The program and its arguments."""
    environment: Mapping[str, str]
    """Variables that are added to the launcher's own."""
    run_dir: RunDir
    """The run; its ``driver_log`` takes the output."""
