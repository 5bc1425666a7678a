"""What a run's folder says of the run: how far it is, how it went, what a person should know."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from launcher import history
from launcher.history import Ending
from rotescale.activity import Activity, activity_of
from rotescale.checkpoint.attempts import newest_manifest
from rotescale.memory_gauge import MemoryPeak, peaks
from rotescale.pace import Straggler, newest_paces, stragglers
from rotescale.records import EventRow, RecordReader, Records
from rotescale.run_dir import Outcome, RunDir

PREPARING = Activity("preparing", 0, None)
"""Before there is a step or an evaluation."""
_LOUD = (
    "damaged",
    "hang",
    "preemption",
    "superseded",
    "skipped",
    "node-excluded",
    "fabric-unknown",
)
"""Events that a person who looks wants to see."""
_NUM_LOUD = 3


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the run is, by its records."""

    attempt: int
    activity: Activity = PREPARING
    checkpoint: str | None = None
    """Folder of the newest complete checkpoint from which it can go on, below the run's."""

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        activity = {
            **asdict(self.activity),
            "seconds_left": self.activity.seconds_left,
            "run_seconds_left": self.activity.run_seconds_left,
        }
        return {"attempt": self.attempt, **activity, "checkpoint": self.checkpoint}


class Account(BaseModel):
    """All that status tells of a run folder, as it was at ``time``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    time: str
    """When it was read: UTC, ISO 8601."""
    progress: Progress | None = None
    """None before the first attempt."""
    outcome: Outcome | None = None
    endings: tuple[Ending, ...] = ()
    """How drivers have ended, in order."""
    stragglers: tuple[Straggler, ...] = ()
    """The ranks for which the others wait, the worst first."""
    memory: MemoryPeak | None = None
    """Where the newest attempt's workers have held most so far."""
    events: tuple[EventRow, ...] = ()
    """What a person should know, the latest last."""


def read_account(run_dir: RunDir, reader: RecordReader | None = None) -> Account | None:
    """What the folder says now; None where there is no run that can be seen from here.

    ``reader``: who looks again and again keeps one, so that each record is read once. Raises
    RotescaleError where the folder is damaged or its storage does not answer, OSError where it may
    not be read.
    """
    if not run_dir.spec_json.exists():
        return None
    outcome = Outcome.read(run_dir)
    records = (reader or RecordReader(run_dir)).read(to_the_last=True)
    return Account(
        time=history.now(),
        progress=_progress(run_dir, records),
        outcome=outcome,
        endings=tuple(history.endings(run_dir)),
        stragglers=tuple(stragglers(newest_paces(records))),
        memory=max(peaks(records), key=lambda peak: peak.most, default=None),
        events=tuple(one for one in records.events if one.name in _LOUD)[-_NUM_LOUD:],
    )


def _progress(run_dir: RunDir, records: Records) -> Progress | None:
    attempt = run_dir.newest_attempt()
    if attempt is None:
        return None
    manifest = newest_manifest(run_dir, attempt)
    return Progress(
        attempt,
        activity=activity_of(records) or PREPARING,
        checkpoint=None if manifest is None else manifest.rpartition("/")[0],
    )
