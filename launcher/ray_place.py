"""A run on a Ray cluster that is running, reached through its jobs API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from shlex import quote

from launcher import history, status_line
from launcher.account import Account
from launcher.job import (
    RAY_JOB_STATES,
    PlaceUnavailableError,
    Situation,
    last_line,
    stop_seconds,
)
from launcher.jobs_api import TERMINAL, Job, JobsApi
from launcher.ray_jobs import RUN_KEY, render
from rotescale.launch_spec import LaunchSpec
from rotescale.spec import ExperimentSpec

_POLL_SECONDS = 1.0
_SLOW_STOP_SECONDS = 30.0


class RayLauncher:
    """The jobs of one run, one after the other: only one of them is there at a time."""

    def __init__(
        self,
        launch: LaunchSpec,
        name: str,
        *,
        api: JobsApi,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``name`` is the run's (``kuberay.names.job_name``)."""
        self._launch = launch
        self._name = name
        self._api = api
        self._sleep = sleep
        self._clock = clock

    def submit(self, spec: ExperimentSpec, *, retry: bool) -> bool:
        """As ``Launcher.submit``. Raises SpecError where the cluster asks for no token."""
        self._api.require_token()
        last = self._last()
        if last is not None and last.status not in TERMINAL:
            return False
        number = 1 if last is None else _number(last) + 1
        before = history.now() if retry else None
        request = render(spec, self._launch, attempt=number, retry_before=before)
        self._api.put_package(request.package_path, request.package)
        # Another launcher that does the same now takes the same number, and Ray has it once.
        return self._api.submit(request.body)

    def look(self) -> Situation:
        """As ``Launcher.look``."""
        job = self._last()
        if job is None:
            return Situation(
                "unknown",
                "the Ray cluster knows no job of this run; it was not submitted there, or the "
                "cluster has been started anew since. Submit it again to go on",
                (("Ray job", "none"),),
            )
        words = job.status if job.exit_code is None else f"{job.status}, exit code {job.exit_code}"
        return Situation(
            RAY_JOB_STATES.get(job.status, "unknown"),
            _why(job),
            (("Ray job", f"{job.submission_id}: {words}"),),
        )

    def account(self) -> Account | None:
        """As ``Launcher.account``, of the newest job."""
        job = self._last()
        if job is None:
            return None

        def tail(num_lines: int) -> list[str]:
            text = self._api.tail(job, num_lines=num_lines)
            return self._api.masked(text).splitlines()

        return status_line.newest_of(tail)

    def how_to_read(self, path: str) -> str:
        """As ``Launcher.how_to_read``: Ray gives out a driver's log, and no file."""
        return f"on a machine of the Ray cluster that sees the run's folder: cat {quote(path)}"

    def logs(self, *, num_lines: int) -> list[str]:
        """As ``Launcher.logs``."""
        job = self._last()
        if job is None:
            return []
        lines = self._api.masked(self._api.logs(job.submission_id)).splitlines()
        return [line for line in lines if not status_line.is_status(line)][-num_lines:]

    def follow(self) -> Iterator[str]:
        """As ``Launcher.follow``."""
        return (line for line in self._lines() if not status_line.is_status(line))

    def _lines(self) -> Iterator[str]:
        job = self._last()
        rest = ""
        for piece in () if job is None else self._api.follow(job.submission_id):
            *lines, rest = (rest + piece).split("\n")
            yield from map(self._api.masked, lines)
        if rest:
            yield self._api.masked(rest)

    def cancel(self, *, grace_seconds: float | None) -> bool:
        """As ``Launcher.cancel``: the supervisor on the cluster saves first.

        Ray kills what has not ended after the time that the job has asked for.
        """
        job = self._last()
        if job is None or job.status in TERMINAL:
            return False
        seconds = max(grace_seconds or 0.0, stop_seconds(self._launch) + _SLOW_STOP_SECONDS)
        deadline = self._clock() + seconds
        self._api.stop(job.submission_id)
        while True:
            self._sleep(_POLL_SECONDS)
            now = self._api.job(job.submission_id)
            if now is None or now.status in TERMINAL:
                return True
            if self._clock() >= deadline:
                break
            if now.status == "PENDING":
                # Ray may forget that a job which has not begun was to be stopped.
                self._api.stop(job.submission_id)
        raise PlaceUnavailableError(
            f"Ray job {job.submission_id} was asked to stop, and is {now.status} after "
            f"{seconds:.0f} s; look with status, and cancel again"
        )

    def _last(self) -> Job | None:
        """The newest job of this run."""
        mine = [job for job in self._api.jobs() if job.metadata.get(RUN_KEY) == self._name]
        return max(mine, key=_number, default=None)


def _number(job: Job) -> int:
    """Which of its run's jobs it is, as the id says."""
    return int(job.submission_id.rpartition("-")[2])


def _why(job: Job) -> str:
    if job.status == "PENDING":
        return job.message
    return last_line(job.message) if job.status == "FAILED" else ""
