"""The truth about a run in one place: what its place says, joined with what its folder says.

Neither is enough. A place says that a job succeeded, and knows nothing of the run's outcome; a
folder says at which step the run is, and not whether anybody is still at work.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from launcher import history
from launcher.history import Ending, Start
from launcher.job import JobState, PlaceUnavailableError, Situation
from launcher.target import Target
from rotescale.activity import Activity, activity_of
from rotescale.checkpoint.attempts import newest_manifest
from rotescale.errors import RotescaleError
from rotescale.launch_spec import LaunchSpec
from rotescale.memory_gauge import MemoryPeak, peaks
from rotescale.pace import Straggler, newest_paces, stragglers
from rotescale.records import EventRow, Records, read_records
from rotescale.run_dir import Outcome, RunDir

_LOUD = ("damaged", "hang", "preemption", "superseded", "skipped", "node-excluded")
"""Events that a person who looks wants to see."""
_NUM_LOUD = 3
PREPARING = Activity("preparing", 0, None)
"""Before there is a step or an evaluation."""
PLACE_AWAY = ("place", "does not answer")
"""The layer of a report whose place could not be reached."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the run is, by its records."""

    attempt: int
    activity: Activity = PREPARING
    checkpoint: str | None = None
    """Folder of the newest complete checkpoint from which it can go on, below the run's."""

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        activity = {**asdict(self.activity), "seconds_left": self.activity.seconds_left}
        return {"attempt": self.attempt, **activity, "checkpoint": self.checkpoint}


@dataclass(frozen=True, slots=True)
class RunReport:
    """Everything that is known of a run."""

    name: str
    run_folder: str
    place: str
    state: JobState
    reason: str
    layers: tuple[tuple[str, str], ...] = ()
    progress: Progress | None = None
    """None where the run's folder cannot be read from here, or holds nothing yet."""
    outcome: str | None = None
    restarts: tuple[Ending, ...] = ()
    """How drivers ended that were not the last."""
    stragglers: tuple[Straggler, ...] = ()
    """The ranks for which the others wait, the worst first."""
    memory: MemoryPeak | None = None
    """Where the newest attempt's workers have held most so far."""
    events: tuple[EventRow, ...] = field(default=())
    """What a person should know, the latest last."""

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "name": self.name,
            "run_folder": self.run_folder,
            "place": self.place,
            "state": self.state,
            "reason": self.reason,
            "layers": dict(self.layers),
            "progress": None if self.progress is None else self.progress.as_dict(),
            "outcome": self.outcome,
            "restarts": [ending.model_dump() for ending in self.restarts],
            "stragglers": [one._asdict() for one in self.stragglers],
            "memory": None if self.memory is None else self.memory.model_dump(),
            "events": [event.model_dump() for event in self.events],
        }


class Looks(Protocol):
    """The part of a ``Launcher`` that tells how a run is."""

    def look(self) -> Situation:
        """What the place says now."""
        ...


def look(target: Target, launcher: Looks) -> RunReport:
    """Ask the place and the folder. What does not answer is said, and is no guess."""
    run_dir = target.run_dir
    try:
        situation = launcher.look()
    except (RotescaleError, OSError) as error:
        is_away = isinstance(error, PlaceUnavailableError)
        layer = PLACE_AWAY if is_away else ("place", "refuses")
        situation = Situation("unknown", str(error), (layer,))
    report = RunReport(
        name=target.name,
        run_folder=str(run_dir.root),
        place=target.place,
        state=situation.state,
        reason=situation.reason,
        layers=situation.layers,
    )
    try:
        if not run_dir.spec_json.exists():
            return report
        return _with_folder(report, situation, target)
    except (RotescaleError, OSError) as error:
        return replace(report, layers=(*report.layers, ("run folder", f"cannot be read: {error}")))


def _with_folder(report: RunReport, situation: Situation, target: Target) -> RunReport:
    """The report with all that the run's folder says."""
    run_dir = target.run_dir
    outcome = Outcome.read(run_dir)
    records = read_records(run_dir)
    elsewhere = last_start_elsewhere(run_dir, target.launch)
    state, reason = judge(situation, outcome, elsewhere)
    layers = report.layers
    if elsewhere is not None and situation.is_alive:
        layers = (*layers, ("last start", elsewhere.words))
    ended = history.endings(run_dir)
    return replace(
        report,
        state=state,
        reason=reason,
        layers=layers,
        progress=_progress(run_dir, records),
        outcome=None if outcome is None else _describe(outcome),
        restarts=tuple(ended[:-1] if state in ("finished", "failed", "stopped") else ended),
        stragglers=tuple(stragglers(newest_paces(records))),
        memory=max(peaks(records), key=lambda peak: peak.most, default=None),
        events=tuple(one for one in records.events if one.name in _LOUD)[-_NUM_LOUD:],
    )


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The last start of a run, which was made at another place than the one that was looked at."""

    start: Start
    ending: Ending | None

    @property
    def words(self) -> str:
        """Which it is, and what is known of its end."""
        how = "has noted no end"
        if self.ending is not None:
            how = f"ended ({self.ending.kind}: {self.ending.reason})"
        return f"start {self.start.number}, at {self.start.where}, {self.start.time}, {how}"


def last_start_elsewhere(run_dir: RunDir, launch: LaunchSpec) -> Elsewhere | None:
    """The last start, by the run's folder; None where that place has made it, or nobody any."""
    last = history.newest(run_dir)
    return None if last is None or last[0].was_at(launch) else Elsewhere(*last)


def judge(
    situation: Situation, outcome: Outcome | None, elsewhere: Elsewhere | None = None
) -> tuple[JobState, str]:
    """State and reason, by the place's word and the run's outcome, which is never wrong.

    A place's word is about its job: that a job failed says that the run has stopped, and that it
    succeeded says nothing where the run has no outcome. Nor does it say anything of a run whose
    last start was ``elsewhere``.
    """
    if outcome is not None and outcome.status == "finished":
        return "finished", ""
    if situation.is_alive:
        return situation.state, situation.reason
    if outcome is not None:
        return "failed", _describe(outcome)
    if elsewhere is not None:
        is_open = elsewhere.ending is None or situation.state == "unknown"
        words = f"nothing of it is here: {elsewhere.words}; ask there, with --on its launch spec"
        return "unknown" if is_open else "stopped", words
    if situation.state == "unknown":
        return situation.state, situation.reason
    if situation.state == "finished":
        return "stopped", "its job says that it succeeded, and the run has no outcome; submit it"
    return "stopped", situation.reason


def _describe(outcome: Outcome) -> str:
    if outcome.status == "finished":
        return f"finished in attempt {outcome.attempt}"
    return f"failed in attempt {outcome.attempt}: {outcome.error}: {outcome.message}"


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
