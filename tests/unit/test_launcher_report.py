"""What a place says and what a run's folder says make one truth."""

from __future__ import annotations

import io
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher import history
from launcher.account import Account, Progress
from launcher.history import Ending, EndKind, Start
from launcher.job import JobState, PlaceUnavailableError, Situation
from launcher.report import RunReport, judge, look
from launcher.status_page import page, short, span
from launcher.target import Target
from rotescale.activity import Activity
from rotescale.launch_spec import LaunchSpec, RayAccess
from rotescale.records import EventRow
from rotescale.run_dir import Outcome, RunDir, SegmentName

FINISHED = Outcome(status="finished", attempt=2)
FAILED = Outcome(status="failed", attempt=2, exit_code=3, error="TrainingError", message="NaN")


@pytest.mark.parametrize(
    ("said", "outcome", "state", "reason"),
    [
        ("running", None, "running", "words"),
        ("pending", None, "pending", "words"),
        # Its job is being cleaned up, or its driver was lost after the outcome.
        ("running", FINISHED, "finished", ""),
        ("failed", FINISHED, "finished", ""),
        ("unknown", FINISHED, "finished", ""),
        # Started again after a failure whose cause is gone.
        ("running", FAILED, "running", "words"),
        ("failed", FAILED, "failed", "failed in attempt 2: TrainingError: NaN"),
        ("unknown", FAILED, "failed", "failed in attempt 2: TrainingError: NaN"),
        # A job that failed is a run that can go on.
        ("failed", None, "stopped", "words"),
        ("stopped", None, "stopped", "words"),
        ("unknown", None, "unknown", "words"),
    ],
)
def test_the_outcome_is_believed_and_the_job_is_only_a_job(
    said: JobState, outcome: Outcome | None, state: str, reason: str
) -> None:
    assert judge(Situation(said, "words"), outcome) == (state, reason)


def test_a_job_that_succeeded_without_an_outcome_is_not_called_finished() -> None:
    state, reason = judge(Situation("finished"), None)
    assert state == "stopped"
    assert "has no outcome" in reason


class Place:
    def __init__(self, answer: Situation | Exception, told: Account | None = None) -> None:
        self._answer = answer
        self._told = told

    def account(self) -> Account | None:
        return self._told

    def look(self) -> Situation:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


CLUSTER = {"name": "cluster", "place": "ray", "address": "auto"}
ACCESS = RayAccess(jobs_url="http://localhost:1", token_variable="TOKEN")


def at(run_dir: RunDir) -> Target:
    """That run on a Ray cluster."""
    launch = LaunchSpec(**CLUSTER, ray=ACCESS, storage=str(run_dir.root.parent))  # type: ignore[arg-type]
    return Target(run_dir.root.name, launch)


def test_a_place_that_does_not_answer_is_no_guess(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    report = look(at(run_dir), Place(PlaceUnavailableError("http://x does not answer")))
    assert (report.state, report.reason) == ("unknown", "http://x does not answer")
    assert report.progress is None
    run_dir.root.mkdir()
    run_dir.spec_json.write_text("{}")
    run_dir.outcome_json.write_text(FINISHED.model_dump_json())
    report = look(at(run_dir), Place(PlaceUnavailableError("http://x does not answer")))
    assert report.state == "finished", "its folder knows"


@pytest.mark.parametrize(
    ("said", "end", "state", "why"),
    [
        ("running", None, "running", "words"),
        # The job here has ended and left the run, or nobody knows it any more.
        ("failed", None, "unknown", "has noted no end; ask there"),
        ("finished", None, "unknown", "has noted no end; ask there"),
        ("unknown", None, "unknown", "has noted no end; ask there"),
        ("failed", "cancelled", "stopped", "ended (cancelled: because); ask there"),
        ("unknown", "cancelled", "unknown", "ended (cancelled: because); ask there"),
    ],
)
def test_a_run_that_was_begun_elsewhere_is_not_told_by_the_job_that_is_here(
    tmp_path: Path, said: JobState, end: EndKind | None, state: str, why: str
) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.root.mkdir()
    run_dir.spec_json.write_text("{}")
    history.begin(run_dir, place="ray", launch="cluster", owner="a")
    here = look(at(run_dir), Place(Situation(said, "words")))
    assert "start 1" not in here.reason, "its last start was here"
    assert "last start" not in dict(here.layers)
    history.begin(run_dir, place="kuberay", launch="eks", owner="b")
    if end is not None:
        history.end(
            run_dir,
            Ending(number=2, time="", kind=end, reason="because", exit_code=1, checkpoint=None),
        )
    report = look(at(run_dir), Place(Situation(said, "words")))
    assert report.state == state
    assert why in report.reason
    words = dict(report.layers).get("last start", report.reason)
    assert "start 2, at eks (kuberay) on " in words
    Outcome(status="finished", attempt=1).write(run_dir)
    assert look(at(run_dir), Place(Situation(said, "words"))).state == "finished"


@pytest.mark.parametrize(
    ("start", "launch", "expected"),
    [
        ({"place": "local", "launch": "one"}, {}, True),
        ({"place": "local", "launch": "one", "host": "far"}, {}, False),
        ({"place": "local"}, {**CLUSTER, "ray": ACCESS}, False),
        ({"place": "ray", "launch": "cluster", "host": "far"}, {**CLUSTER, "ray": ACCESS}, True),
        ({"place": "ray", "launch": "other", "host": "far"}, {**CLUSTER, "ray": ACCESS}, False),
        ({"place": "ray", "host": "far"}, {**CLUSTER, "ray": ACCESS}, True),
        # A process on a machine of the cluster.
        ({"place": "ray", "launch": "cluster"}, CLUSTER, True),
        ({"place": "ray", "launch": "cluster", "host": "far"}, CLUSTER, False),
    ],
)
def test_where_a_start_was(start: dict[str, str], launch: dict[str, Any], expected: bool) -> None:
    fields = {"number": 1, "time": "", "host": socket.gethostname(), **start}
    assert Start.model_validate(fields).was_at(LaunchSpec(**launch)) is expected


def test_a_damaged_folder_is_said_beside_what_the_place_says(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.root.mkdir()
    run_dir.spec_json.write_text("{}")
    run_dir.outcome_json.write_text("{")
    report = look(at(run_dir), Place(Situation("running")))
    assert report.state == "running"
    assert "outcome.json: damaged" in dict(report.layers)["run folder"]


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def test_a_folder_that_is_not_seen_is_told_by_the_run_and_how_old_that_is() -> None:
    activity = Activity("memorize", 70, 100, loss=0.5, seconds_per_step=4.0)
    told = Account(time=ago(25), progress=Progress(2, activity, "checkpoints/one"))
    report = look(at(RunDir.at("/nowhere/run")), Place(Situation("running"), told))
    assert (report.state, report.progress) == ("running", told.progress)
    assert report.age_seconds is not None
    assert 25 <= report.age_seconds < 40
    assert report.as_dict()["progress"]["done"] == 70
    assert "s ago by the run's supervisor; its folder cannot be read from here" in printed(report)
    assert short(report) == "memorize 70/100, 2 min left"


@pytest.mark.parametrize(
    ("said", "outcome", "state"),
    [
        ("running", None, "running"),
        ("failed", None, "stopped"),
        ("failed", FAILED, "failed"),
        ("unknown", FINISHED, "finished"),
        # The last line is lost.
        ("finished", None, "finished"),
    ],
)
def test_an_outcome_that_was_told_is_believed(
    said: JobState, outcome: Outcome | None, state: str
) -> None:
    told = Account(time=ago(5000), outcome=outcome)
    report = look(at(RunDir.at("/nowhere/run")), Place(Situation(said, ""), told))
    assert report.state == state


def test_the_folder_is_read_where_it_can_be_and_nothing_is_asked(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.root.mkdir()
    run_dir.spec_json.write_text("{}")
    report = look(at(run_dir), Place(Situation("running"), Account(time=ago(9))))
    assert report.age_seconds is None


def test_what_is_left_of_a_phase() -> None:
    assert Activity("memorize", 70, 100, seconds_per_step=4.0).seconds_left == 120
    assert Activity("memorize", 70, None, seconds_per_step=4.0).seconds_left is None
    assert Activity("evaluate memorize", 70, 100).seconds_left is None
    assert [span(s) for s in (5.0, 150.0, 4000.0)] == ["5 s", "2 min", "1 h 7 min"]
    report = look(at(RunDir.at("/nowhere/run")), Place(Situation("running")))
    assert short(report) == ""


def test_the_rank_that_others_wait_for_is_named(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.root.mkdir()
    run_dir.spec_json.write_text("{}")
    ranks = [
        {
            **{"rank": rank, "node": f"host-{rank}", "wait_seconds": wait},
            **{"step_seconds": 2.0, "product_seconds": None},
        }
        for rank, wait in enumerate((1.0, 1.0, 0.0))
    ]
    with_records(run_dir, "ranks", {"ranks": ranks})
    report = look(at(run_dir), Place(Situation("running")))
    (slow,) = report.stragglers
    assert (slow.rank, slow.node, slow.ratio) == (2, "host-2", 2.0)
    assert report.as_dict()["stragglers"] == [{"rank": 2, "node": "host-2", "ratio": 2.0}]
    assert "rank 2" in printed(report)


def with_records(run_dir: RunDir, name: str, details: dict[str, Any]) -> None:
    event = EventRow(attempt=1, time="", name=name, message="", details=details)
    segment = run_dir.record_segment(SegmentName(1, 0, 1))
    assert isinstance(segment, Path)
    segment.parent.mkdir(parents=True)
    segment.write_text(event.model_dump_json() + "\n")


def printed(report: RunReport) -> str:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(page(report))
    return capture.get()
