"""A submitted run is started once, found again truthfully, and stopped by its own process id."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from launcher import cli, local
from launcher.job import JobRequest
from rotescale.errors import CheckpointError, SpecError
from rotescale.run_dir import Outcome, RunDir

MICRO = Path(__file__).parents[2] / "configs" / "experiments" / "micro.yaml"
# The submitter ends at once in real life; here it goes on, and Python notices.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

Submit = Callable[..., tuple[RunDir, bool]]


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Submit]:
    """Submits a command as the run ``tiny``; what still runs at the end is killed."""
    run_dir = RunDir(tmp_path / "tiny")
    pids = set()

    def submit(*command: str, environment: dict[str, str] | None = None) -> tuple[RunDir, bool]:
        request = JobRequest("tiny", command, environment or {}, run_dir)
        started = local.submit(request)
        pids.add(pid(run_dir))
        return run_dir, started

    yield submit
    for one in pids:
        with suppress(ProcessLookupError):
            os.killpg(one, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(one, 0)


def pid_file(run_dir: RunDir) -> Path:
    return run_dir.logs_dir / "driver.pid"


def pid(run_dir: RunDir) -> int:
    return int(json.loads(pid_file(run_dir).read_bytes())["pid"])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def change_pid_file(run_dir: RunDir, **values: object) -> None:
    saved = json.loads(pid_file(run_dir).read_bytes())
    pid_file(run_dir).write_text(json.dumps(saved | values))


def start_attempt(run_dir: RunDir, number: int) -> None:
    run_dir.attempts_dir.mkdir(exist_ok=True)
    run_dir.attempt(number).write_text(json.dumps({"number": number, "resumes": None}))


def test_render_is_the_command_that_runs_the_spec() -> None:
    request = local.render(
        Path("specs/a b.yaml"),
        name="tiny",
        storage="/nowhere",
        launch=Path("place.yaml"),
        overrides=["seed=1", "facts.relations=[mother]"],
        flags=["--retry"],
    )
    assert request.command == (
        *(sys.executable, "-m", "rotescale.cli", "run", "specs/a b.yaml", "--on", "place.yaml"),
        *("--set", "seed=1", "--set", "facts.relations=[mother]", "--retry"),
    )
    assert request.name == "tiny"
    assert request.run_dir == RunDir(Path("/nowhere/tiny"))
    assert not Path("/nowhere").exists()


def test_a_default_place_needs_no_file() -> None:
    request = local.render(MICRO, name="micro", storage="runs")
    assert request.command[1:] == ("-m", "rotescale.cli", "run", str(MICRO))


def test_output_and_environment_of_a_command_that_ends(submit: Submit) -> None:
    run_dir, _ = submit("sh", "-c", "echo $WORD; echo bad >&2", environment={"WORD": "hello"})
    wait_for(lambda: local.state(run_dir) == "stopped")
    assert local.logs(run_dir, num_lines=10) == ["hello", "bad"]
    assert local.logs(run_dir, num_lines=1) == ["bad"]


def test_states_from_the_first_process_to_the_outcome(submit: Submit, tmp_path: Path) -> None:
    assert local.state(RunDir(tmp_path / "tiny")) == "unknown"
    run_dir, _ = submit("sleep", "60")
    assert local.state(run_dir) == "pending"
    start_attempt(run_dir, 1)
    assert local.state(run_dir) == "running"
    os.kill(pid(run_dir), signal.SIGKILL)
    wait_for(lambda: local.state(run_dir) == "stopped")

    run_dir, started = submit("sleep", "60")
    assert started
    assert local.state(run_dir) == "pending", "attempt 1 is of the driver before"
    start_attempt(run_dir, 2)
    failed = Outcome(status="failed", attempt=2, exit_code=2, error="DataError", message="no")
    failed.write(run_dir)
    assert local.state(run_dir) == "running"
    assert local.cancel(run_dir)
    assert local.state(run_dir) == "failed"
    Outcome(status="finished", attempt=2).write(run_dir)
    assert local.state(run_dir) == "finished"


def test_submitted_twice_runs_once(submit: Submit) -> None:
    run_dir, started = submit("sleep", "60")
    first = pid(run_dir)
    assert started
    assert submit("sleep", "60") == (run_dir, False)
    assert pid(run_dir) == first


def test_many_submits_at_once_start_one(submit: Submit, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from launcher import local;"
        "from launcher.job import JobRequest; from rotescale.run_dir import RunDir;"
        "run_dir = RunDir(Path(sys.argv[1]));"
        "print(local.submit(JobRequest('tiny', ('sleep', '60'), {}, run_dir)))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "tiny")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert sorted(one.communicate(timeout=60)[0].strip() for one in both) == ["False", "True"]
    assert not submit("sleep", "60")[1]


def test_the_driver_is_of_a_session_of_its_own(submit: Submit) -> None:
    run_dir, _ = submit("sleep", "60")
    assert os.getsid(pid(run_dir)) == os.getpgid(pid(run_dir)) == pid(run_dir) != os.getsid(0)


def test_cancel_ends_the_driver_and_its_children(submit: Submit, tmp_path: Path) -> None:
    child_file = tmp_path / "child"
    run_dir, _ = submit("sh", "-c", f"sleep 60 & echo $! > {shlex.quote(str(child_file))}; wait")
    wait_for(lambda: child_file.exists() and child_file.read_text().endswith("\n"))
    # A shell starts its background jobs deaf to SIGINT; SIGTERM reaches them.
    assert local.cancel(run_dir, grace_seconds=0.2)
    assert local.state(run_dir) == "stopped"
    child = Path("/proc") / child_file.read_text().strip() / "stat"
    wait_for(lambda: not child.exists() or ") Z " in child.read_text())
    assert not local.cancel(run_dir), "there is nothing left to stop"


def test_cancel_kills_what_will_not_listen(submit: Submit, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap '' INT TERM; touch {shlex.quote(str(ready))}; while :; do sleep 1; done"
    run_dir, _ = submit("sh", "-c", script)
    wait_for(ready.exists)
    assert local.cancel(run_dir, grace_seconds=0.2)
    assert local.state(run_dir) == "stopped"


def test_a_pid_that_is_another_process_now_is_neither_alive_nor_killed(submit: Submit) -> None:
    run_dir, _ = submit("sleep", "60")
    # Processes are told apart by when they started, in hundredths of a second.
    time.sleep(0.05)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        change_pid_file(run_dir, pid=stranger.pid)
        assert local.state(run_dir) == "stopped"
        assert not local.cancel(run_dir)
        assert stranger.poll() is None
        assert submit("true")[1], "nothing of this run is alive"
        stranger.kill()


def test_another_machines_pid_says_nothing_here(submit: Submit) -> None:
    run_dir, _ = submit("sleep", "60")
    change_pid_file(run_dir, host="elsewhere")
    assert local.state(run_dir) == "unknown"
    assert not local.cancel(run_dir)
    with pytest.raises(CheckpointError, match=r"elsewhere.*submit it there"):
        submit("sleep", "60")


def test_a_damaged_pid_file_is_named(submit: Submit) -> None:
    run_dir, _ = submit("true")
    saved = pid_file(run_dir).read_bytes()
    pid_file(run_dir).write_text("{")
    with pytest.raises(CheckpointError, match=r"driver\.pid: damaged.*delete it"):
        local.state(run_dir)
    pid_file(run_dir).write_bytes(saved)


def launcher(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The launcher's command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["rotescale-launch", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_a_dry_run_shows_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "place.yaml"
    place.write_text(f"storage: {tmp_path / 'runs'}\n")
    code = launcher(
        *("submit", str(MICRO), "--on", str(place), "--set", "seed=1", "--dry-run"),
        monkeypatch=monkeypatch,
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert f"-m rotescale.cli run {MICRO} --on {place} --set seed=1 >> " in printed
    assert str(RunDir(tmp_path / "runs" / "micro").driver_log) in printed
    assert not (tmp_path / "runs").exists()


def test_status_tells_how_far_the_run_is(
    submit: Submit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, _ = submit("sh", "-c", "echo error: no space")
    wait_for(lambda: local.state(run_dir) == "stopped")
    start_attempt(run_dir, 1)
    segment = run_dir.records_dir / "attempt-0001" / "rank-00000" / "segment-000001.jsonl"
    segment.parent.mkdir(parents=True)
    row = {
        "kind": "step",
        **{"attempt": 1, "phase": "memorize", "phase_index": 0, "step": 7, "epoch": 2},
        **{"cursor": 70, "loss": 1.25, "grad_norm": None, "learning_rate": 0.1, "seconds": 1},
        **{"num_examples": 10, "num_tokens": 50, "target_tokens": 50},
    }
    segment.write_text(json.dumps(row) + "\n")
    complete, cut_short = (
        run_dir.checkpoints_dir / "attempt-0001" / f"01-memorize-step-{step:06d}-full"
        for step in (5, 6)
    )
    for folder in (complete, cut_short):
        folder.mkdir(parents=True)
    (complete / "manifest.json").write_text("{}\n")

    assert launcher("status", str(run_dir.root), monkeypatch=monkeypatch) == 0
    told = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    told = {name: value.strip() for name, value in told.items()}
    assert told["state"] == "stopped"
    assert (told["phase"], told["step"], told["loss"]) == ("memorize", "7 (epoch 2)", "1.2500")
    assert told["checkpoint"] == complete.relative_to(run_dir.root).as_posix()
    assert told["outcome"] == "none yet"
    assert told["last words"] == "error: no space"

    run_dir.attempt(2).write_text(json.dumps({"resumes": told["checkpoint"] + "/manifest.json"}))
    launcher("status", str(run_dir.root), monkeypatch=monkeypatch)
    assert complete.name in capsys.readouterr().out, "attempt 2 went on from it"


def test_a_bad_spec_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code = launcher("submit", str(MICRO), "--set", "seeed=1", monkeypatch=monkeypatch)
    assert code == SpecError.exit_code
    assert capsys.readouterr().err == f"error: {MICRO}: seeed: unknown key; did you mean 'seed'?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_run_that_does_not_exist(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    code = launcher(command, str(tmp_path / "none"), monkeypatch=monkeypatch)
    assert code == SpecError.exit_code
    assert "no such run; give the folder of a run" in capsys.readouterr().err


def test_resume_needs_a_run_and_submits_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "place.yaml"
    place.write_text(f"storage: {tmp_path / 'runs'}\n")
    sent: list[JobRequest] = []
    monkeypatch.setattr(local, "submit", lambda request: sent.append(request) or True)
    arguments = ("resume", str(MICRO), "--on", str(place), "--retry")
    assert launcher(*arguments, monkeypatch=monkeypatch) == SpecError.exit_code
    assert "no such run" in capsys.readouterr().err
    (tmp_path / "runs" / "micro").mkdir(parents=True)
    assert launcher(*arguments, monkeypatch=monkeypatch) == 0
    assert sent[0].command[-1] == "--retry"
    assert "micro started" in capsys.readouterr().out
