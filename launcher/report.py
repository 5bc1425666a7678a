"""The truth about a run in one place: what its place says, joined with what its folder says.

Neither is enough. A place says that a job succeeded, and knows nothing of the run's outcome; a
folder says at which step the run is, and not whether anybody is still at work.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from launcher import history
from launcher.account import Account, Progress, read_account
from launcher.history import Ending, Start
from launcher.job import JobState, PlaceUnavailableError, Situation
from launcher.target import Target
from rotescale.errors import RotescaleError
from rotescale.launch_spec import LaunchSpec
from rotescale.memory_gauge import MemoryPeak
from rotescale.pace import Straggler
from rotescale.records import EventRow
from rotescale.run_dir import Outcome, RunDir

PLACE_AWAY = ("place", "does not answer")
"""The layer of a report whose place could not be reached."""


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
    """None where nothing is known of it, or there is no attempt yet."""
    age_seconds: float | None = None
    """How long ago the run's supervisor told this, where the folder cannot be read from here; None:
    it was read from the folder, or nothing is known."""
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
            "age_seconds": self.age_seconds,
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

    def account(self) -> Account | None:
        """What the run's supervisor said last into what the place keeps of its output."""
        ...


def look(target: Target, launcher: Looks) -> RunReport:
    """Ask the place and the folder. What does not answer is said, and is no guess.

    Where the folder cannot be read from here, what the run has told of it stands for it.
    """
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
        account = read_account(run_dir)
        elsewhere = None if account is None else last_start_elsewhere(run_dir, target.launch)
    except (RotescaleError, OSError) as error:
        report = _beside(report, "run folder", f"cannot be read: {error}")
        account = elsewhere = None
    if account is not None:
        return _joined(report, situation, account, elsewhere)
    if PLACE_AWAY in report.layers:
        return report
    try:
        told = launcher.account()
    except (RotescaleError, OSError) as error:
        return _beside(report, "output", f"cannot be read: {error}")
    if told is None:
        return report
    report = _joined(report, situation, told)
    if told.outcome is None and situation.state == "finished":
        # Its last line is lost, and a job that ends well is all that is known of the end.
        report = replace(report, state=situation.state, reason=situation.reason)
    return replace(report, age_seconds=_age(told))


def _beside(report: RunReport, layer: str, words: str) -> RunReport:
    return replace(report, layers=(*report.layers, (layer, words)))


def _joined(
    report: RunReport, situation: Situation, account: Account, elsewhere: Elsewhere | None = None
) -> RunReport:
    """The report with what the folder says, or has said."""
    state, reason = judge(situation, account.outcome, elsewhere)
    is_over = state in ("finished", "failed", "stopped")
    layers = report.layers
    if elsewhere is not None and situation.is_alive:
        layers = (*layers, ("last start", elsewhere.words))
    return replace(
        report,
        state=state,
        reason=reason,
        layers=layers,
        progress=account.progress,
        outcome=None if account.outcome is None else _describe(account.outcome),
        restarts=account.endings[:-1] if is_over else account.endings,
        stragglers=account.stragglers,
        memory=account.memory,
        events=account.events,
    )


def _age(account: Account) -> float:
    """Seconds since it was told, as far as the clocks agree."""
    since = datetime.now(UTC) - datetime.fromisoformat(account.time)
    return max(0.0, since.total_seconds())


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
