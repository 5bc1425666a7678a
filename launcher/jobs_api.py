"""The jobs API of a Ray cluster's dashboard, over HTTP: Ray's documented REST interface.

No Ray is needed on this machine. Ray's own client takes its address and token from the process's
environment in preference to what it is given; here both come from the launch spec and nowhere else.
"""

from __future__ import annotations

import os
import ssl
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
import websocket

from launcher.job import MayHaveStartedError, PlaceUnavailableError, last_line
from launcher.patience import (
    FIRST_WAIT,
    LONGEST_WAIT,
    PATIENCE_SECONDS,
    capped,
    patiently,
    told_seconds,
)
from rotescale.credentials import HIDDEN, hidden
from rotescale.errors import SpecError
from rotescale.launch_spec import RayAccess

SUBMISSION = "rotescale-submission"
"""Metadata: which call has created the job."""
ASK_FOR_TOKEN = (
    "start the cluster anew with RAY_AUTH_MODE=token and the token in RAY_AUTH_TOKEN on every "
    "node; under KubeRay, authOptions: {mode: token}"
)
"""What to do about a cluster that is open."""
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
"""The statuses that a job does not leave."""
_TIMEOUT = (10.0, 60.0)
_RETRIED = (429, 500, 502, 503, 504)
_MAX_NODES = 10_000
"""The most that Ray lists."""
_Read = TypeVar("_Read")
_IDLE_SECONDS = 300.0
"""Each new stream sends everything again, so silence alone is no reason for one."""


@dataclass(frozen=True, slots=True)
class Job:
    """What Ray says of a job."""

    submission_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    exit_code: int | None
    """Of the entrypoint; None while it is at work, or where Ray does not know."""
    metadata: dict[str, str]
    node_id: str | None = None
    """Where the entrypoint runs, or ran; None before it does."""


class JobsApi:
    """A cluster's jobs. Every call waits through an outage of ``patience_seconds``, then raises
    PlaceUnavailableError; a refused token, or one that is not there, raises SpecError."""

    def __init__(
        self,
        access: RayAccess,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._access = access
        self._patience_seconds = patience_seconds
        # A server that takes a request and says nothing is away, too.
        self._timeout = capped(_TIMEOUT, patience_seconds)
        self._sleep = sleep
        self._session = requests.Session()
        # Neither proxies' passwords nor ~/.netrc: the token is the only credential.
        self._session.trust_env = False
        self._token = read_token(access)
        self._session.headers["Authorization"] = f"Bearer {self._token}"
        self._authorities = _authorities(access)
        self._session.verify = self._authorities or True

    def masked(self, text: str) -> str:
        """What a job has printed, without the token of this cluster."""
        return text.replace(self._token, HIDDEN)

    def version(self) -> dict[str, Any]:
        """Ray's version there, and the jobs API's."""
        return self._read(self._ask("GET", "/api/version"), lambda said: {**said})

    def put_package(self, path: str, package: bytes) -> None:
        """Put a package there, unless it is there: its path is made of its content."""
        if self._ask("GET", path, missing_is_fine=True).status_code == requests.codes.not_found:
            self._ask("PUT", path, data=package)

    def submit(self, body: dict[str, Any]) -> bool:
        """Start a job; False where one of that id is there.

        An answer that did not arrive says nothing, and Ray says 500 for an id that is taken as for
        a cluster that has just begun. So the id is asked for before each try, and a mark in the
        job's metadata tells whether it is this call's. Raises MayHaveStartedError where nothing
        can be asked any more after a try.
        """
        mark = uuid.uuid4().hex
        marked = {**body, "metadata": {**body.get("metadata", {}), SUBMISSION: mark}}
        was_sent = False

        def once() -> bool:
            nonlocal was_sent
            there = self.job(body["submission_id"])
            if there is not None:
                return there.metadata.get(SUBMISSION) == mark
            was_sent = True
            self._answered("POST", "/api/jobs/", json=marked)
            return True

        try:
            return patiently(once, seconds=self._patience_seconds, sleep=self._sleep)
        except PlaceUnavailableError as error:
            if was_sent:
                raise MayHaveStartedError(str(error)) from None
            raise

    def job(self, submission_id: str) -> Job | None:
        """The job of that id; None where the cluster does not know it."""
        answer = self._ask("GET", f"/api/jobs/{submission_id}", missing_is_fine=True)
        missing = answer.status_code == requests.codes.not_found
        return None if missing else self._read(answer, self._job)

    def jobs(self) -> list[Job]:
        """All jobs that were submitted to the cluster, and that it still knows."""
        return self._read(
            self._ask("GET", "/api/jobs/"),
            lambda said: [self._job(one) for one in said if one["submission_id"]],
        )

    def nodes(self) -> list[dict[str, float]]:
        """The resources that each node of the cluster has in all, such as ``CPU`` and ``GPU``."""
        return self._read(
            self._ask("GET", f"/api/v0/nodes?detail=1&limit={_MAX_NODES}"),
            lambda said: [
                {str(key): float(value) for key, value in one["resources_total"].items()}
                for one in said["data"]["result"]["result"]
                if one["state"] == "ALIVE"
            ],
        )

    def is_open(self) -> bool:
        """Whether the jobs are shown to somebody who has no token."""
        answer = patiently(self._asked_by_nobody, seconds=self._patience_seconds, sleep=self._sleep)
        try:
            return answer.ok and isinstance(answer.json(), list)
        except ValueError:
            # Such as the page of a proxy that logs people in.
            return False

    def require_token(self) -> None:
        """SpecError where the cluster is open."""
        if self.is_open():
            raise SpecError(
                f"ray.jobs_url {self._access.jobs_url}: it asks for no token, so whoever reaches "
                f"it runs code there; {ASK_FOR_TOKEN}"
            )

    def _asked_by_nobody(self) -> requests.Response:
        """The answer to somebody who has no token, which is not that of an outage."""
        answer = self._send("GET", "/api/jobs/", headers={"Authorization": None})
        if answer.status_code in _RETRIED:
            raise self._unavailable(self._words(answer), answer.headers.get("Retry-After"))
        return answer

    def stop(self, submission_id: str) -> None:
        """Ask the job to end. It may go on for as long as it was given to end in."""
        self._ask("POST", f"/api/jobs/{submission_id}/stop", missing_is_fine=True)

    def logs(self, submission_id: str) -> str:
        """What the job has printed; empty where the cluster does not know it."""
        answer = self._ask("GET", f"/api/jobs/{submission_id}/logs", missing_is_fine=True)
        if answer.status_code == requests.codes.not_found:
            return ""
        return self._read(answer, lambda said: str(said["logs"]))

    def tail(self, job: Job, *, num_lines: int) -> str:
        """The last lines of what the job has printed.

        Of the REST interface behind ``ray logs``: that of jobs sends all of a log of weeks. Where
        it gives none, the whole log is asked for.
        """
        query = f"node_id={job.node_id}&submission_id={job.submission_id}&lines={num_lines}"
        answer = self._send("GET", f"/api/v0/logs/file?{query}")
        if answer.ok:
            return answer.content.decode(errors="replace")
        return self.logs(job.submission_id)

    def follow(self, submission_id: str) -> Iterator[str]:
        """What the job prints, in pieces as they come, from its first line on, until it has ended.

        A stream that closes says nothing about the job, so its status is asked for; each new stream
        begins with the first line, and what was given is not given again.
        """
        given, wait = 0, FIRST_WAIT
        while True:
            seen = 0
            for piece in self._stream(submission_id):
                fresh = piece[max(0, given - seen) :]
                seen += len(piece)
                if fresh:
                    wait = FIRST_WAIT
                    yield fresh
            given = max(given, seen)
            job = self.job(submission_id)
            if job is None or job.status in TERMINAL:
                rest = self.logs(submission_id)[given:]
                if rest:
                    yield rest
                return
            self._sleep(wait)
            wait = min(LONGEST_WAIT, wait * 2)

    def _stream(self, submission_id: str) -> Iterator[str]:
        """One connection's worth of it."""
        url = f"{self._access.jobs_url.replace('http', 'ws', 1)}/api/jobs/{submission_id}/logs/tail"
        try:
            connection = websocket.create_connection(
                url,
                timeout=_IDLE_SECONDS,
                header={"Authorization": str(self._session.headers["Authorization"])},
                sslopt={"ca_certs": self._authorities, "cert_reqs": ssl.CERT_REQUIRED},
                redirect_limit=0,
                http_no_proxy=["*"],
            )
        except (OSError, websocket.WebSocketException):
            return
        try:
            while True:
                piece = connection.recv()
                if not piece:
                    return
                yield piece if isinstance(piece, str) else piece.decode(errors="replace")
        except (OSError, websocket.WebSocketException):
            return
        finally:
            connection.close()

    def _ask(
        self, method: str, path: str, *, missing_is_fine: bool = False, data: bytes | None = None
    ) -> requests.Response:
        """An answer that is no error, however often it has to be asked for."""
        return patiently(
            lambda: self._answered(method, path, missing_is_fine=missing_is_fine, data=data),
            seconds=self._patience_seconds,
            sleep=self._sleep,
        )

    def _answered(
        self, method: str, path: str, *, missing_is_fine: bool = False, **body: Any
    ) -> requests.Response:
        """One request's answer, where it is no error."""
        answer = self._send(method, path, **body)
        if answer.ok or (missing_is_fine and answer.status_code == requests.codes.not_found):
            return answer
        if answer.status_code in _RETRIED:
            raise self._unavailable(self._words(answer), answer.headers.get("Retry-After"))
        raise self._refusal(answer)

    def _send(self, method: str, path: str, **body: Any) -> requests.Response:
        try:
            return self._session.request(
                method,
                f"{self._access.jobs_url}{path}",
                timeout=self._timeout,
                # A token goes to the server that the launch spec names, and to no other.
                allow_redirects=False,
                **body,
            )
        except requests.exceptions.SSLError as error:
            raise SpecError(
                f"ray.jobs_url {self._access.jobs_url}: its certificate cannot be trusted "
                f"({self._reason(error)}); name its authority's in ray.ca_file"
            ) from None
        except requests.exceptions.RequestException as error:
            raise self._unavailable(self._reason(error)) from None

    def _read(self, answer: requests.Response, meaning: Callable[[Any], _Read]) -> _Read:
        """What an answer means. SpecError where it is none of Ray's, such as a proxy's page."""
        try:
            return meaning(answer.json())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SpecError(
                f"ray.jobs_url {self._access.jobs_url} answers, but not as Ray's jobs API does; is "
                "it the dashboard of a Ray cluster?"
            ) from None

    def _job(self, said: dict[str, Any]) -> Job:
        return Job(
            submission_id=str(said["submission_id"]),
            status=str(said["status"]),
            message=hidden(said.get("message") or "", self._token),
            exit_code=said.get("driver_exit_code"),
            metadata={str(k): str(v) for k, v in (said.get("metadata") or {}).items()},
            node_id=said.get("driver_node_id"),
        )

    def _refusal(self, answer: requests.Response) -> SpecError:
        url = self._access.jobs_url
        source = _source(self._access)
        if answer.status_code == requests.codes.unauthorized:
            return SpecError(f"ray.jobs_url {url} wants a token, and takes none from {source}")
        if answer.status_code == requests.codes.forbidden:
            return SpecError(f"ray.jobs_url {url} refuses the token from {source}; renew it there")
        return SpecError(
            f"ray.jobs_url {url} answers {answer.status_code} ({self._words(answer)}); is it the "
            "dashboard of a Ray cluster?"
        )

    def _unavailable(self, why: str, retry_after: str | None = None) -> PlaceUnavailableError:
        return PlaceUnavailableError(
            f"{self._access.jobs_url} does not answer ({why}); is the cluster, or the tunnel to "
            "it, up? What it was asked to do may have been done: look with status",
            retry_after=told_seconds(retry_after),
        )

    def _words(self, answer: requests.Response) -> str:
        """The last line of an error's text: Ray answers with a traceback."""
        words = hidden(last_line(answer.text), self._token)[:300]
        return words or f"HTTP {answer.status_code}"

    def _reason(self, error: Exception) -> str:
        inner = error.args[0] if error.args else error
        reason = getattr(inner, "reason", inner)
        return hidden(str(reason).rpartition(": ")[2], self._token)[:200]


def read_token(access: RayAccess) -> str:
    """The cluster's token, from where the launch spec says. Raises SpecError where it is not."""
    if access.token_variable is not None:
        token = os.environ.get(access.token_variable, "").strip()
        if not token:
            raise SpecError(
                "ray.token_variable names a variable that is not set on this machine; set it to "
                "the cluster's token"
            )
        return _sendable(token, access)
    assert access.token_file is not None, "RayAccess names one of the two"
    path = Path(access.token_file).expanduser()
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise SpecError(
            f"ray.token_file: cannot be read ({reason}); put the cluster's token there"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise SpecError(
            f"ray.token_file: others may read it (mode {stat.S_IMODE(mode):o}); chmod 600"
        )
    return _sendable(token, access)


def _authorities(access: RayAccess) -> str | None:
    """The file of ``ray.ca_file``; None: the system's. Raises SpecError where it holds none."""
    if access.ca_file is None:
        return None
    path = Path(access.ca_file).expanduser()
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        # An SSLError is one, too.
        reason = "no certificates in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise SpecError(
            f"ray.ca_file {access.ca_file}: cannot be used ({reason}); put the certificates there "
            "that the dashboard's is checked against, or leave it out"
        ) from None
    return str(path)


def _sendable(token: str, access: RayAccess) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise SpecError(f"{_source(access)}: what is there is no token; put the cluster's there")
    return token


def _source(access: RayAccess) -> str:
    return "ray.token_file" if access.token_variable is None else "ray.token_variable"
