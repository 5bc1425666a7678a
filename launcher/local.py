"""Runs an experiment on this machine, as a process that outlives the launcher."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher import history, process
from launcher.account import Account
from launcher.job import (
    ALIVE,
    JobState,
    PlaceUnavailableError,
    Situation,
    last_line,
    stop_seconds,
)
from rotescale.errors import CheckpointError, RotescaleError, StorageError
from rotescale.launch_spec import LaunchSpec
from rotescale.notices import request_save
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import dump_json
from rotescale.storage import make_folder, write_atomic, writing

_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
_FILES = "submitted"
_POLL_SECONDS = 0.05
_FOLLOW_SECONDS = 0.5
_KILL_SECONDS = 10.0
_TAIL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class JobRequest:
    """Everything that is needed to start a run on this machine."""

    command: tuple[str, ...]
    """The program and its arguments."""
    environment: Mapping[str, str]
    """Variables that are added to the launcher's own."""
    run_dir: RunDir
    """The run; its ``driver_log`` takes the output."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What the program reads: name, below the run's local folder, and text."""

    @property
    def line(self) -> str:
        """The request as a shell would take it."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        command = shlex.join([*variables, *self.command])
        return f"{command} >> {shlex.quote(str(self.run_dir.driver_log))}"


class _Driver(BaseModel):
    """The supervisor that was started last; saved beside its log."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    """Also the id of its process group and session."""
    identity: str | None
    """Boot and start time of the process: a pid alone may be another's by now."""
    host: str
    attempts_before: int
    """The newest attempt when it was started; 0 where there was none."""

    @property
    def is_here(self) -> bool:
        """Whether it was started on this machine, the only place where its pid says something."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether that very process is at work on this machine, or what it has left behind."""
        return self.supervises or self.is_survived

    @property
    def supervises(self) -> bool:
        """Whether the supervisor itself is at work."""
        return self.is_here and process.is_alive(self.pid, self.identity)

    @property
    def is_survived(self) -> bool:
        """Whether the supervisor was killed, and the driver that it started goes on."""
        return self.is_here and process.is_survived(self.pid, self.identity)


class LocalLauncher:
    """A run on this machine."""

    def __init__(self, launch: LaunchSpec, run_dir: RunDir) -> None:
        self._launch = launch
        self._run_dir = run_dir

    def submit(self, spec: ExperimentSpec, *, retry: bool) -> bool:
        """As ``Launcher.submit``."""
        before = history.now() if retry else None
        return submit(render(spec, self._launch, retry_before=before))

    def look(self) -> Situation:
        """As ``Launcher.look``."""
        found = state(self._run_dir)
        driver = _read_driver(self._run_dir)
        if driver is None:
            return Situation(found, "", (("process", "none was started on this machine"),))
        alive = "at work" if driver.is_alive else "ended"
        if driver.is_survived:
            alive = "ended, but what it has started is at work; cancel ends that"
        where = alive if driver.is_here else f"on {driver.host}, which cannot be seen from here"
        printed = logs(self._run_dir, num_lines=20) if found == "stopped" else []
        reason = last_line("\n".join(printed))
        return Situation(found, reason, (("process", f"{driver.pid}, {where}"),))

    def account(self) -> Account | None:
        """As ``Launcher.account``: the run's folder is here, so nothing is told."""
        return None

    def how_to_read(self, path: str) -> str:
        """As ``Launcher.how_to_read``."""
        return f"cat {path}"

    def logs(self, *, num_lines: int) -> list[str]:
        """As ``Launcher.logs``."""
        return logs(self._run_dir, num_lines=num_lines)

    def follow(self) -> Iterator[str]:
        """As ``Launcher.follow``."""
        return follow(self._run_dir)

    def cancel(self, *, grace_seconds: float | None) -> bool:
        """As ``Launcher.cancel``: the supervisor saves first."""
        allowed = stop_seconds(self._launch)
        seconds = allowed if grace_seconds is None else grace_seconds
        return cancel(self._run_dir, grace_seconds=seconds)


def render(
    spec: ExperimentSpec, launch: LaunchSpec, *, retry_before: str | None = None
) -> JobRequest:
    """The request that runs the experiment on this machine.

    A failure from before the time ``retry_before`` is forgotten. Raises SpecError where the launch
    spec does not allow what the experiment runs.
    """
    spec.evaluation.require_code_allowed(launch.allow_task_code)
    run_dir = RunDir.of(launch.storage, spec.name)
    folder = run_dir.node_dir / _FILES
    command = (sys.executable, "-m", "launcher.cli", "supervise", str(folder / "experiment.json"))
    retry = () if retry_before is None else ("--retry-before", retry_before)
    return JobRequest(
        command=(*command, "--on", str(folder / "launch.json"), *retry),
        environment=dict(_ENVIRONMENT),
        run_dir=run_dir,
        files={
            f"{_FILES}/experiment.json": dump_json(spec),
            f"{_FILES}/launch.json": dump_json(launch),
        },
    )


def submit(request: JobRequest) -> bool:
    """Start the request, detached; False, and nothing started, where its run is alive already."""
    run_dir, output = request.run_dir, request.run_dir.driver_log
    make_folder(output.parent)
    with _one_at_a_time(output.parent):
        driver = _read_driver(run_dir)
        if driver is not None and driver.is_alive:
            return False
        if driver is not None and not driver.is_here and Outcome.read(run_dir) is None:
            raise CheckpointError(
                f"{_driver_file(run_dir)}: the run was started on {driver.host}, whose processes "
                "cannot be seen from here; submit it there, or delete this file if it has ended"
            )
        for name, text in request.files.items():
            make_folder((run_dir.node_dir / name).parent)
            write_atomic(run_dir.node_dir / name, text.encode())
        attempts_before = run_dir.newest_attempt() or 0
        with writing(output), output.open("ab") as log:
            started = subprocess.Popen(
                request.command,
                env={**os.environ, **request.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        driver = _Driver(
            pid=started.pid,
            # Even if it has ended by now: nobody has asked how, so it is listed still.
            identity=process.identity(started.pid),
            host=socket.gethostname(),
            attempts_before=attempts_before,
        )
        try:
            write_atomic(_driver_file(run_dir), (driver.model_dump_json() + "\n").encode())
        except StorageError:
            # A driver that nobody can find again must not go on.
            os.killpg(started.pid, signal.SIGKILL)
            raise
    return True


def state(run_dir: RunDir) -> JobState:
    """What the run is doing, from its outcome, its driver's process and its attempts."""
    outcome = Outcome.read(run_dir)
    if outcome is not None and outcome.status == "finished":
        return "finished"
    driver = _read_driver(run_dir)
    if driver is not None and driver.is_alive:
        # A driver that was told to retry is alive beside the outcome that it is about to clear.
        newest = run_dir.newest_attempt() or 0
        return "running" if newest > driver.attempts_before else "pending"
    if outcome is not None:
        return "failed"
    return "stopped" if driver is not None and driver.is_here else "unknown"


def logs(run_dir: RunDir, *, num_lines: int) -> list[str]:
    """The last lines that the driver has printed; none where it was never started."""
    try:
        with run_dir.driver_log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return lines[-num_lines:] if num_lines > 0 else []


def follow(run_dir: RunDir) -> Iterator[str]:
    """The lines of ``driver_log`` from the first on, as they come, until the driver has ended."""
    rest, position = b"", 0
    while True:
        is_over = state(run_dir) not in ALIVE
        with suppress(FileNotFoundError), run_dir.driver_log.open("rb") as file:
            file.seek(position)
            fresh = file.read()
            position += len(fresh)
            *lines, rest = (rest + fresh).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        if is_over:
            if rest:
                yield rest.decode(errors="replace")
            return
        time.sleep(_FOLLOW_SECONDS)


def cancel(run_dir: RunDir, *, grace_seconds: float = 20.0) -> bool:
    """End the driver and all that it started, politely first; False where it was not alive.

    The supervisor alone is asked first, and has its driver save. Waits ``grace_seconds`` for that,
    and as long after SIGTERM for the whole group to go. Raises PlaceUnavailableError where some of
    it outlives SIGKILL, too.
    """
    driver = _read_driver(run_dir)
    if driver is None or not driver.is_alive:
        return False
    asked = (signal.SIGINT,) if driver.supervises else ()
    if not asked and (run_dir.newest_attempt() or 0) > driver.attempts_before:
        # Nobody else has what the supervisor started save.
        with suppress(RotescaleError, OSError):
            request_save(run_dir, "the run is cancelled", limit_seconds=grace_seconds)
    for number in (*asked, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            if number == signal.SIGINT:
                os.kill(driver.pid, number)
            else:
                os.killpg(driver.pid, number)
        seconds = _KILL_SECONDS if number == signal.SIGKILL else grace_seconds
        deadline = time.monotonic() + seconds
        while process.group_is_alive(driver.pid) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if not process.group_is_alive(driver.pid):
            return True
    raise PlaceUnavailableError(
        f"{run_dir.root}: process group {driver.pid} was killed, and some of it is still there, "
        "such as in a file system that does not answer; look with status"
    )


def _driver_file(run_dir: RunDir) -> Path:
    return run_dir.driver_log.with_suffix(".pid")


def _read_driver(run_dir: RunDir) -> _Driver | None:
    path = _driver_file(run_dir)
    try:
        return _Driver.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: damaged ({error.errors()[0]['msg']}); delete it once no driver of this run "
            "is alive"
        ) from None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time pass for that folder, so that two submits start one driver."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
