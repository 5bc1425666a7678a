"""Drivers are started again when they were not at fault, within a budget, and ended in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from supervising import BUDGETS, supervise

from launcher import cli, history
from launcher.history import Ending, EndKind, Start
from launcher.supervisor import CANCELLED, classify, decide, forget_failure
from rotescale.launch_spec import Restarts
from rotescale.object_store import RemotePath
from rotescale.records import EventRow
from rotescale.run_dir import Outcome, RunDir

MICRO = Path(__file__).parents[2] / "configs" / "experiments" / "micro.yaml"
FAILED = Outcome(status="failed", attempt=1, exit_code=2, error="DataError", message="row 3")
FINISHED = Outcome(status="finished", attempt=1)


def event(name: str, message: str = "", *, attempt: int = 1) -> EventRow:
    return EventRow(attempt=attempt, time="", name=name, message=message)


@pytest.mark.parametrize(
    ("exit_code", "outcome", "events", "expected"),
    [
        (0, FINISHED, (), ("finished", "the run is finished")),
        (2, FAILED, (), ("user", "DataError: row 3")),
        # The outcome is the evidence, whatever else happened on the way.
        (-9, FAILED, (event("hang"),), ("user", "DataError: row 3")),
        (2, None, (), ("user", "last words")),
        (3, None, (), ("user", "last words")),
        (4, None, (), ("infrastructure", "last words")),
        (1, None, (), ("infrastructure", "last words")),
        (4, None, (event("hang", "rank 1: step"),), ("hang", "rank 1: step")),
        (4, None, (event("preemption", "node 7"),), ("preempted", "node 7")),
        # An earlier attempt's hang was got over.
        (4, None, (event("hang"), event("attempt", attempt=2)), ("infrastructure", "last words")),
        (-15, None, (), ("infrastructure", "the driver was ended by SIGTERM")),
        (130, None, (), ("cancelled", "it was interrupted")),
        (-2, None, (), ("cancelled", "it was interrupted")),
    ],
)
def test_each_end_has_a_class_by_its_evidence(
    exit_code: int,
    outcome: Outcome | None,
    events: tuple[EventRow, ...],
    expected: tuple[str, str],
) -> None:
    found = classify(exit_code, outcome=outcome, events=events, last_line="last words")
    assert found == expected


def test_whoever_has_the_run_since_is_the_reason_unless_it_is_decided() -> None:
    successor = Start(number=2, time="noon", place="ray", host="far", launch="big", owner="b")
    for code in (4, 2, -9):
        kind, reason = classify(
            code, outcome=None, events=(event("hang"),), last_line="", successor=successor
        )
        assert kind == "superseded"
        assert reason == "start 2, at big (ray) on far, has the run since noon"
    for code, outcome, kind in ((2, FAILED, "user"), (0, FINISHED, "finished")):
        found = classify(code, outcome=outcome, events=(), last_line="", successor=successor)
        assert found[0] == kind


def test_a_killed_driver_may_have_lacked_memory() -> None:
    kind, reason = classify(-9, outcome=None, events=(), last_line="")
    assert kind == "infrastructure"
    assert "SIGKILL, perhaps for lack of memory" in reason


def endings(*kinds: tuple[EndKind, str | None]) -> list[Ending]:
    return [
        Ending(number=i, time="", kind=kind, reason="why", exit_code=4, checkpoint=checkpoint)
        for i, (kind, checkpoint) in enumerate(kinds, start=1)
    ]


@pytest.mark.parametrize("kind", ["finished", "cancelled", "user", "superseded"])
def test_what_is_decided_is_not_started_again(kind: EndKind) -> None:
    assert decide(endings((kind, None)), BUDGETS).action == "stop"


@pytest.mark.parametrize(("kind", "budget"), [("infrastructure", 2), ("hang", 1)])
def test_each_class_has_its_own_budget(kind: EndKind, budget: int) -> None:
    for count in range(1, budget + 1):
        assert decide(endings(*[(kind, None)] * count), BUDGETS).action == "restart"
    decision = decide(endings(*[(kind, None)] * (budget + 1)), BUDGETS)
    assert decision.action == "stop"
    assert f"restarts.{kind} is {budget}" in decision.reason
    mixed = endings(("preempted", None), ("infrastructure", None), ("hang", None))
    assert decide(mixed, BUDGETS).action == "restart"


def test_preemptions_are_not_counted_unless_the_spec_says_so() -> None:
    many = endings(*[("preempted", None)] * 50)
    assert decide(many, BUDGETS).action == "restart"
    assert decide(many, Restarts(preempted=49)).action == "stop"


def test_progress_makes_earlier_failures_count_no_more() -> None:
    steps = [("infrastructure", name) for name in (None, None, "a", "b", "b", "c")]
    assert decide(endings(*steps), BUDGETS).action == "restart"  # type: ignore[arg-type]
    stuck = [*steps, ("infrastructure", "c"), ("infrastructure", "c")]
    assert decide(endings(*stuck), BUDGETS).action == "stop"  # type: ignore[arg-type]


def test_storage_that_does_not_answer_is_no_progress() -> None:
    seen = ("a", None, "a", None)
    stuck: list[tuple[EndKind, str | None]] = [("infrastructure", name) for name in seen]
    assert decide(endings(*stuck), BUDGETS).action == "stop"


def test_waits_grow_and_stay_below_a_minute() -> None:
    waits = [
        decide(endings(*[("preempted", None)] * count), BUDGETS).wait_seconds
        for count in range(1, 12)
    ]
    assert waits == sorted(waits)
    assert waits[0] == 2
    assert waits[-1] == 60


def test_a_driver_that_dies_twice_is_started_three_times(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run_dir = RunDir(tmp_path / "run")
    script = f"echo here; echo x >> {tmp_path}/n; test $(wc -l < {tmp_path}/n) = 3 || kill -9 $$"
    code, said = supervise(run_dir, script)
    assert code == 0
    assert said.count("started again") == 2
    assert [one.kind for one in history.endings(run_dir)] == [
        *("infrastructure", "infrastructure", "finished")
    ]
    assert [one.place for one in history.starts(run_dir)] == ["local"] * 3
    assert [run_dir.numbered_driver_log(n).read_text() for n in (1, 2, 3)] == ["here\n"] * 3
    assert capfdbinary.readouterr().out == b"here\n" * 3


def test_a_user_error_is_never_tried_again(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    code, said = supervise(run_dir, "echo error: no such field; exit 2")
    assert code == 2
    assert said == "not started again: error: no such field"
    assert len(history.starts(run_dir)) == 1


def test_the_budget_ends_it_with_the_drivers_code(tmp_path: Path) -> None:
    code, said = supervise(RunDir(tmp_path / "run"), "exit 4")
    assert code == 4
    assert said.count("started again in") == 2
    assert "infrastructure, 3 times without a newer checkpoint" in said
    assert supervise(RunDir(tmp_path / "killed"), "kill -9 $$", None)[0] == 128 + 9


def test_storage_that_is_away_when_a_driver_ends_does_not_end_the_run(tmp_path: Path) -> None:
    """The folder of starts is moved away by the driver, and comes back a few waits later."""
    run_dir = RunDir(tmp_path / "run")
    there, away = run_dir.launches_dir, tmp_path / "away"
    assert isinstance(there, Path)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:
            there.unlink()
            away.rename(there)

    script = f"test -e {tmp_path}/second && exit 0; touch {tmp_path}/second"
    script += f"; mv {there} {away}; touch {there}; exit 4"
    found, said = supervise(run_dir, script, sleep=sleep)
    assert found == 0
    assert "it cannot be noted that the driver has ended (infrastructure)" in said
    assert said.count("waiting for the run's folder") == 1
    # Once for the driver, then for storage, which counts as no failure of the run's.
    assert waits == [2, 2, 4, 8]
    assert run_dir.launch_numbers() == [1, 2]
    assert [ending.kind for ending in history.endings(run_dir)] == ["finished"]


def test_a_reader_that_has_gone_stops_no_driver(tmp_path: Path) -> None:
    """Of the supervisor's own output, such as a full disk's file or a pipe."""
    run_dir = RunDir(tmp_path / "run")
    script = f"seq 1 50000; test -e {tmp_path}/second && exit 0; touch {tmp_path}/second; exit 4"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from launcher import driver_output\n"
        "from launcher.supervisor import Supervisor\n"
        "from rotescale.launch_spec import Restarts\n"
        "from rotescale.run_dir import RunDir\n"
        "ended = Supervisor(\n"
        "    RunDir(Path(sys.argv[1])), ('sh', '-c', sys.argv[2]), place='local',\n"
        "    launch='laptop', budgets=Restarts(), grace_seconds=0, say=driver_output.say,\n"
        ").run()\n"
        "driver_output.end_output()\n"
        "sys.exit(ended)\n"
    )
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code, str(run_dir.root), script],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr.decode()
    # Though it could not say that it starts another.
    assert [one.kind for one in history.endings(run_dir)] == ["infrastructure", "finished"]
    for number in (1, 2):
        kept = run_dir.numbered_driver_log(number).read_text().split()
        assert kept == [str(line) for line in range(1, 50001)]


def test_storage_that_stays_away_is_given_up(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    waits: list[float] = []
    script = f"rm -r {run_dir.launches_dir}; touch {run_dir.launches_dir}; exit 4"
    with pytest.raises(OSError, match="launches"):
        supervise(run_dir, script, sleep=waits.append)
    assert 3600 <= sum(waits) < 3600 + 2 * 60
    # At the first start whoever submitted it is told at once, and where others start it again too.
    for budgets in (BUDGETS, None):
        with pytest.raises(OSError, match="launches"):
            supervise(run_dir, "exit 0", budgets)


def test_once_leaves_it_to_others(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    assert supervise(run_dir, "exit 4", budgets=None) == (4, "")
    assert history.endings(run_dir)[0].kind == "infrastructure"


def test_a_failure_from_before_is_forgotten_and_a_later_one_is_not(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.root.mkdir()

    def kept(time_of_failure: str | None) -> bool:
        failed = FAILED.model_copy(update={"time": time_of_failure})
        run_dir.outcome_json.write_text(failed.model_dump_json())
        forget_failure(run_dir, before=datetime.fromisoformat(noon))
        return run_dir.outcome_json.exists()

    noon = "2026-11-27T12:00:00+00:00"
    assert not kept("2026-11-27T11:59:59+00:00")
    assert not kept(None), "from before outcomes had a time"
    assert kept("2026-11-27T12:00:01+00:00"), "the job itself failed: it is not tried again"
    assert not kept("2026-11-27T13:30:00+02:00")


def test_a_time_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("yesterday", "2026-11-27T12:00:00"):
        monkeypatch.setattr(
            sys, "argv", ["rotescale-launch", "supervise", str(MICRO), "--retry-before", text]
        )
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        assert f"--retry-before {text}: no time" in capsys.readouterr().err


STOPPED = """
import sys
from pathlib import Path
from launcher.supervisor import Supervisor
from rotescale.launch_spec import Restarts
from rotescale.object_store import RemotePath
from rotescale.run_dir import RunDir
supervisor = Supervisor(
    RunDir(Path(sys.argv[1])), (sys.executable, "-c", sys.argv[2]), place="ray",
    launch="cluster", budgets=Restarts(), grace_seconds=20,
    say=lambda words: print(words, flush=True),
)
sys.exit(supervisor.run())
"""
DRIVER = """
import json, os, pathlib, signal, sys, time
root = pathlib.Path(os.environ["RUN"])
assert os.environ["ROTESCALE_SUPERVISED"] == "1"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(root / "attempts").mkdir(parents=True)
attempt = {"number": 1, "resumes": None, "started": "", "world_size": 1, "host": ""}
(root / "attempts" / "0001.json").write_text(json.dumps(attempt))
print("ready", flush=True)
try:
    while True:
        time.sleep(0.05)
        if (root / "save-request.json").exists():
            print("saving", flush=True)
            (root / "save-request.json").unlink()
except KeyboardInterrupt:
    print("ended", flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_saves_first(tmp_path: Path, number: signal.Signals) -> None:
    """As Ray stops a job: the signal reaches the driver as well."""
    root = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(root), DRIVER],
        env={**os.environ, "RUN": str(root)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    started = time.monotonic()
    with process.stdout as output:
        rest = output.read()
    assert process.wait(timeout=30) == CANCELLED
    assert time.monotonic() - started < 15, "it waits for the answer, not for the whole grace"
    assert rest.splitlines() == ["asked to end: saving first", "saving", "saved", "ended"]
    assert [one.kind for one in history.endings(RunDir(root))] == ["cancelled"]


def test_two_supervisors_never_share_a_number(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    for number in range(3):
        assert history.begin(run_dir, place="local", launch="laptop", owner=str(number))
    assert run_dir.launch_numbers() == [1, 2, 3]
    assert history.endings(run_dir) == [], "killed supervisors note no end"
    assert json.loads(run_dir.launch_start(2).read_bytes())["place"] == "local"


def test_in_a_bucket_starts_ends_and_output_are_kept_there(remote: RemotePath) -> None:
    """Each start's output by itself: another machine's log is never written over."""
    run_dir = RunDir(remote / "run")
    assert supervise(run_dir, "echo first; exit 2")[0] == 2
    assert supervise(run_dir, "echo second")[0] == 0
    assert [one.number for one in history.starts(run_dir)] == [1, 2]
    assert [one.kind for one in history.endings(run_dir)] == ["user", "finished"]
    kept = [(run_dir.logs_dir / f"driver-000{number}.log").read_bytes() for number in (1, 2)]
    assert kept == [b"first\n", b"second\n"]
