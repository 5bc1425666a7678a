"""A run as a launcher sees it: what a place is asked to do, and what it says of the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from launcher.account import Account
from rotescale.errors import RotescaleError
from rotescale.launch_spec import LaunchSpec
from rotescale.spec import ExperimentSpec

JobState = Literal["pending", "running", "finished", "failed", "stopped", "unknown"]
"""``pending``: submitted, no worker yet. ``running``: an attempt is at work. ``finished`` and
``failed``: for good, as the run's outcome says. ``stopped``: nothing runs and there is no outcome,
so the run can go on. ``unknown``: nothing here tells."""

RAY_JOB_STATES: dict[str, JobState] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "finished",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
"""What Ray calls the states of a job, and what they are of a run."""
ALIVE: tuple[JobState, ...] = ("pending", "running")
"""The states in which something of the run is there that could still train."""


END_SECONDS = 60
"""What a supervisor needs to end its driver, beside the save before it."""


def stop_seconds(launch: LaunchSpec) -> int:
    """How long a run under a supervisor may take to end: a save, and the driver's end."""
    return round(launch.resize_save_seconds) + END_SECONDS


def last_line(text: str) -> str:
    """The last line that is not empty, which of a traceback or a log says most; or nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def entrypoint(command: str, retry_before: str | None) -> str:
    """The command, and the only part of it that ever differs: a time, in ISO 8601."""
    if retry_before is None:
        return command
    return f"{command} --retry-before {datetime.fromisoformat(retry_before).isoformat()}"


class PlaceUnavailableError(RotescaleError):
    """A place that does not answer for now. What it was asked to do may have been done."""

    exit_code = 4

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """``retry_after``: in how many seconds it wants to be asked again; None: not said."""
        super().__init__(message)
        self.retry_after = retry_after


class MayHaveStartedError(PlaceUnavailableError):
    """A place that does not answer any more, and that was asked to start the run before."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a place says of a run."""

    state: JobState
    reason: str = ""
    """Why it waits, failed, or cannot be told; empty where there is nothing to say."""
    layers: tuple[tuple[str, str], ...] = ()
    """Name and words of each layer that the place has, from the outermost: queue, job, pods."""

    @property
    def is_alive(self) -> bool:
        """Whether something of the run is there that could still train."""
        return self.state in ALIVE


class Launcher(Protocol):
    """One run at one place. Every method may raise PlaceUnavailableError."""

    def submit(self, spec: ExperimentSpec, *, retry: bool) -> bool:
        """Start the experiment, or what is left of it; False, and nothing started, while it is
        there already. ``retry`` goes on after a failure whose cause is gone.

        Raises MayHaveStartedError where nobody can tell whether it is there by now."""
        ...

    def look(self) -> Situation:
        """What the place says now."""
        ...

    def account(self) -> Account | None:
        """What the run's supervisor said last into what the place keeps of its output; None where
        the place keeps none, or nothing was said yet."""
        ...

    def how_to_read(self, path: str) -> str:
        """How a person reads a file of the run's folder that cannot be seen from here."""
        ...

    def logs(self, *, num_lines: int) -> list[str]:
        """The last lines of the driver that the place still has."""
        ...

    def follow(self) -> Iterator[str]:
        """The driver's lines as they come, over broken connections, until the run has ended."""
        ...

    def cancel(self, *, grace_seconds: float | None) -> bool:
        """End it, after a checkpoint where its place gives time for one; False where nothing was.

        Waits as long as the place allows for that, or ``grace_seconds`` where they are longer. On
        this machine they count if they are shorter, too. Raises PlaceUnavailableError where
        something of the run is at work still.
        """
        ...
