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
import yaml
from launcher_command import launcher_command

from launcher import local
from launcher.job import stop_seconds
from launcher.local import JobRequest, LocalLauncher
from launcher.runs import placed
from rotescale.errors import CheckpointError, SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json, load_spec

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
        request = JobRequest(command, environment or {}, run_dir)
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
    attempt = {"number": number, "resumes": None, "started": "", "world_size": 1, "host": ""}
    run_dir.attempt(number).write_text(json.dumps(attempt))


def test_what_is_started_reads_the_resolved_specs(tmp_path: Path) -> None:
    spec = load_spec(ExperimentSpec, MICRO, ["seed=1"])
    launch = LaunchSpec(storage=str(tmp_path / "runs"))
    request = local.render(spec, launch, retry_before="2026-11-27T10:00:00+00:00")
    folder = tmp_path / "runs" / "micro" / "submitted"
    assert request.command == (
        *(sys.executable, "-m", "launcher.cli", "supervise", str(folder / "experiment.json")),
        *("--on", str(folder / "launch.json"), "--retry-before", "2026-11-27T10:00:00+00:00"),
    )
    assert request.run_dir == RunDir(tmp_path / "runs" / "micro")
    assert not (tmp_path / "runs").exists(), "nothing is written before it is started"
    for name, kind, expected in (
        ("experiment.json", ExperimentSpec, spec),
        ("launch.json", LaunchSpec, launch),
    ):
        (tmp_path / name).write_text(request.files[f"submitted/{name}"])
        assert load_spec(kind, tmp_path / name) == expected


def test_files_are_there_before_the_command(submit: Submit, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "tiny")
    command = ("cat", str(tmp_path / "tiny" / "submitted" / "a.json"))
    request = JobRequest(command, {}, run_dir, {"submitted/a.json": "words"})
    assert local.submit(request)
    wait_for(lambda: local.state(run_dir) == "stopped")
    assert local.logs(run_dir, num_lines=10) == ["words"]


def test_lines_are_followed_to_the_last(submit: Submit) -> None:
    run_dir, _ = submit("sh", "-c", "echo one; sleep 1; echo two; printf three")
    assert list(local.follow(run_dir)) == ["one", "two", "three"]


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
        "from launcher.local import JobRequest; from rotescale.run_dir import RunDir;"
        "run_dir = RunDir(Path(sys.argv[1]));"
        "print(local.submit(JobRequest(('sleep', '60'), {}, run_dir)))"
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


@pytest.mark.parametrize("is_reaped", [False, True])
def test_what_outlives_its_supervisor_is_at_work_and_can_be_cancelled(
    submit: Submit, tmp_path: Path, is_reaped: bool
) -> None:
    """As where a machine is short of memory, and the kernel picks the supervisor."""
    child_file = tmp_path / "child"
    run_dir, _ = submit("sh", "-c", f"sleep 60 & echo $! > {shlex.quote(str(child_file))}; wait")
    wait_for(lambda: child_file.exists() and child_file.read_text().endswith("\n"))
    os.kill(pid(run_dir), signal.SIGKILL)
    if is_reaped:
        os.waitpid(pid(run_dir), 0)
    child = int(child_file.read_text())
    os.kill(child, 0)

    def told() -> str:
        ((_, words),) = LocalLauncher(LaunchSpec(), run_dir).look().layers
        return words

    wait_for(lambda: "ended, but what it has started is at work; cancel ends that" in told())
    assert local.state(run_dir) == "pending"
    assert not submit("true")[1], "two drivers of one run"
    assert local.cancel(run_dir, grace_seconds=5)
    assert local.state(run_dir) == "stopped"
    assert not local.cancel(run_dir)


@pytest.mark.parametrize(("grace_seconds", "saves"), [(None, True), (0.1, False)])
def test_cancel_waits_for_a_save_as_long_as_the_place_allows(
    grace_seconds: float | None, saves: bool, submit: Submit, tmp_path: Path
) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    # A shell could not trap the signal where whoever runs the tests has it ignored.
    script = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(1)\n"
        "    pathlib.Path(sys.argv[1]).touch()\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGINT, save)\n"
        "pathlib.Path(sys.argv[2]).touch()\n"
        "while True:\n"
        "    time.sleep(0.1)\n"
    )
    run_dir, _ = submit(sys.executable, "-c", script, str(saved), str(ready))
    wait_for(ready.exists)
    launch = LaunchSpec(resize_save_seconds=10)
    assert stop_seconds(launch) == 70
    assert LocalLauncher(launch, run_dir).cancel(grace_seconds=grace_seconds)
    assert local.state(run_dir) == "stopped"
    assert saved.exists() == saves


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


@pytest.fixture(autouse=True)
def state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where this machine's submissions are noted."""
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path_factory.mktemp("state")))


def test_a_dry_run_shows_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "place.yaml"
    place.write_text(f"storage: {tmp_path / 'runs'}\n")
    arguments = ("submit", str(MICRO), "--on", str(place), "--set", "seed=1", "--dry-run")
    code = launcher_command(monkeypatch, *arguments)
    shown = yaml.safe_load(capsys.readouterr().out)
    assert code == 0
    assert "-m launcher.cli supervise " in shown["run"]
    assert shown["run"].endswith(f" >> {RunDir(tmp_path / 'runs' / 'micro').driver_log}")
    assert json.loads(shown["files"]["submitted/experiment.json"])["seed"] == 1
    assert not (tmp_path / "runs").exists()


def test_status_tells_how_far_the_run_is(
    submit: Submit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, _ = submit("sh", "-c", "echo error: no space")
    wait_for(lambda: local.state(run_dir) == "stopped")
    run_dir.spec_json.write_text("{}")
    start_attempt(run_dir, 1)
    segment = run_dir.records_dir / "attempt-0001" / "rank-00000" / "segment-000001.jsonl"
    segment.parent.mkdir(parents=True)
    event = {
        **{"kind": "event", "attempt": 1, "time": "2026-11-27T10:00:00+00:00", "name": "phase"},
        "message": "memorize starts",
        "details": {"phase": "memorize", "total_steps": 20, "later_examples": 30},
    }
    row = {
        "kind": "step",
        **{"attempt": 1, "phase": "memorize", "phase_index": 0, "step": 7, "epoch": 2},
        **{"cursor": 70, "loss": 1.25, "grad_norm": None, "learning_rate": 0.1, "seconds": 2},
        **{"num_examples": 10, "num_tokens": 50, "target_tokens": 50},
    }
    segment.write_text("".join(json.dumps(one) + "\n" for one in (event, row)))

    assert launcher_command(monkeypatch, "status", str(run_dir.root), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["reason"]) == ("stopped", "error: no space")
    assert told["progress"] == {
        **{"attempt": 1, "stage": "memorize", "done": 7, "total": 20, "epoch": 2, "loss": 1.25},
        **{"seconds_per_step": 2.0, "parts": {}, "seconds_left": 26.0, "checkpoint": None},
        **{"flops_per_second": None, "share_of_peak": None},
        # 2 s for 10 examples, of which phase 2 has 30 in all.
        **{"later_seconds": 6.0, "run_seconds_left": 32.0},
    }
    assert launcher_command(monkeypatch, "status", str(run_dir.root)) == 0
    page = capsys.readouterr().out
    assert "memorize  7/20, epoch 2" in page
    assert "1.2500" in page


def test_a_bad_spec_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code = launcher_command(monkeypatch, "submit", str(MICRO), "--set", "seeed=1")
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
    code = launcher_command(monkeypatch, command, str(tmp_path / "none"))
    assert code == SpecError.exit_code
    assert "no such run; give the folder of a run" in capsys.readouterr().err


def test_resume_needs_a_run_and_submits_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "place.yaml"
    place.write_text("name: other\nnum_workers: 1\n")
    sent: list[JobRequest] = []
    monkeypatch.setattr(local, "submit", lambda request: sent.append(request) or True)
    root = tmp_path / "runs" / "micro"
    arguments = ("resume", str(root), "--on", str(place), "--retry")
    assert launcher_command(monkeypatch, *arguments) == SpecError.exit_code
    assert "no such run" in capsys.readouterr().err
    root.mkdir(parents=True)
    assert launcher_command(monkeypatch, *arguments) == SpecError.exit_code
    assert "spec.json: not there" in capsys.readouterr().err
    spec = load_spec(ExperimentSpec, MICRO)
    (root / "spec.json").write_text(dump_json(spec))
    assert launcher_command(monkeypatch, *arguments) == 0
    assert "--retry-before" in sent[0].command
    assert sent[0].run_dir == RunDir(root), "the run stays where it is"
    assert json.loads(sent[0].files["submitted/launch.json"])["num_workers"] == [1, 1]
    assert "micro started" in capsys.readouterr().out


def test_what_is_at_work_is_not_resumed_elsewhere(
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    run_dir, _ = submit("sleep", "60")
    place = tmp_path / "place.yaml"
    place.write_text("name: other\n")
    code = launcher_command(monkeypatch, "resume", str(run_dir.root), "--on", str(place))
    assert code == SpecError.exit_code
    assert "it is at work at local (local); end it there first" in capsys.readouterr().err


def test_a_place_lists_its_runs_whoever_has_submitted_them(
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    run_dir, _ = submit("sleep", "60")
    place = tmp_path / "place.yaml"
    place.write_text(f"storage: {run_dir.root.parent}\n")
    (tmp_path / "empty.yaml").write_text(f"name: empty\nstorage: {tmp_path / 'none'}\n")
    assert launcher_command(monkeypatch, "list", "--on", str(tmp_path / "empty.yaml")) == 0
    assert "empty (local) has no run" in capsys.readouterr().out
    # A folder of something else is no run.
    (run_dir.root.parent / "other").mkdir()
    run_dir.spec_json.write_text("{}")
    assert launcher_command(monkeypatch, "list", "--on", str(place)) == 0
    printed = capsys.readouterr().out
    assert str(run_dir.root) in printed
    assert len(printed.splitlines()) == 2
    # Another user's.
    monkeypatch.setattr(RunDir, "spec_json", property(_not_yours))
    assert launcher_command(monkeypatch, "list", "--on", str(place), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {str(run_dir.root)} <= {one["run_folder"] for one in found}
    assert all("cannot be read" in one["layers"]["run folder"] for one in found)


def _not_yours(_: RunDir) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_run_is_found_by_its_name_and_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launcher_command(monkeypatch, "list") == 0
    assert "nothing was submitted" in capsys.readouterr().out
    monkeypatch.setattr(local, "submit", lambda _: True)
    assert launcher_command(monkeypatch, "submit", str(MICRO)) == 0
    name = capsys.readouterr().out.rpartition(" ")[2].strip()
    monkeypatch.chdir("/")
    for text in (name, "micro", str(tmp_path / "runs" / "micro")):
        assert launcher_command(monkeypatch, "status", text, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["name"], told["run_folder"]) == (name, str(tmp_path / "runs" / "micro"))
    assert launcher_command(monkeypatch, "list") == 0
    assert name in capsys.readouterr().out
    assert launcher_command(monkeypatch, "status", "other") == SpecError.exit_code
    assert "no run of that name was submitted from here" in capsys.readouterr().err


def test_diff_says_what_differs_and_whether_it_matters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "place.yaml"
    place.write_text(f"storage: {tmp_path / 'runs'}\n")
    on = ("--on", str(place))
    assert launcher_command(monkeypatch, "diff", str(MICRO), *on) == SpecError.exit_code
    assert "nothing to compare" in capsys.readouterr().err
    root = tmp_path / "runs" / "micro"
    root.mkdir(parents=True)
    (root / "spec.json").write_text(dump_json(load_spec(ExperimentSpec, MICRO)))
    assert launcher_command(monkeypatch, "diff", str(MICRO), *on) == 0
    for change, words in (
        ("seed=1", "results change"),
        ("checkpoints.keep_last=9", "no result changes"),
    ):
        capsys.readouterr()
        assert launcher_command(monkeypatch, "diff", str(MICRO), *on, "--set", change) == 1
        printed = capsys.readouterr().out
        assert words in printed
        field, value = change.rpartition(".")[2].split("=")
        assert f'"{field}": {value}' in printed


def test_a_place_here_means_the_same_from_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    on_the_cluster = LaunchSpec(place="ray", address="auto", storage="runs")
    for launch in (LaunchSpec(storage="runs"), on_the_cluster):
        assert placed(launch).storage == str(tmp_path / "runs")
    assert placed(LaunchSpec(storage="s3://bucket/runs")).storage == "s3://bucket/runs"
