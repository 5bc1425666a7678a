"""Runs an experiment on this machine, as a process that outlives the launcher."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher import process
from launcher.job import JobRequest, JobState
from rotescale.errors import CheckpointError, StorageError
from rotescale.run_dir import Outcome, RunDir
from rotescale.storage import make_folder, write_atomic, writing

_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
_POLL_SECONDS = 0.05
_TAIL_BYTES = 1 << 20


class _Driver(BaseModel):
    """The driver that was started last; saved beside its log."""

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
        """Whether that very process is at work on this machine."""
        return self.is_here and process.is_alive(self.pid, self.identity)


def render(
    experiment: Path,
    *,
    name: str,
    storage: str,
    launch: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> JobRequest:
    """The request that runs a spec on this machine; ``flags`` go to ``rotescale run`` as given."""
    place = () if launch is None else ("--on", str(launch))
    changes = [part for override in overrides for part in ("--set", override)]
    command = (sys.executable, "-m", "rotescale.cli", "run", str(experiment))
    return JobRequest(
        name=name,
        command=(*command, *place, *changes, *flags),
        environment=dict(_ENVIRONMENT),
        run_dir=RunDir.of(storage, name),
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


def cancel(run_dir: RunDir, *, grace_seconds: float = 20.0) -> bool:
    """End the driver and all that it started, politely first; False where it was not alive.

    Waits ``grace_seconds`` after each of SIGINT, SIGTERM and SIGKILL for the whole group to go.
    """
    driver = _read_driver(run_dir)
    if driver is None or not driver.is_alive:
        return False
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, number)
        deadline = time.monotonic() + grace_seconds
        while process.group_is_alive(driver.pid) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if not process.group_is_alive(driver.pid):
            break
    return True


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
