"""A run on a Ray cluster: where it is not started, and when it is said to have stopped."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kuberay_helpers import experiment

from launcher.job import PlaceUnavailableError, stop_seconds
from launcher.jobs_api import JobsApi
from launcher.kuberay.names import job_name
from launcher.ray_jobs import RUN_KEY
from launcher.ray_place import RayLauncher
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec, RayAccess

TOKEN = "c29tZS10b2tlbg"
NAME = job_name("micro", storage="/shared/runs")


class Dashboard(BaseHTTPRequestHandler):
    """What Ray's answers of one job; each test says to whom, and what becomes of the job."""

    asks_for_token = True
    failures = 0
    """How many requests are answered as in an outage."""
    statuses: tuple[str, ...] = ("RUNNING",)
    """Of the job, each time that it is asked for; the last one stays."""
    requests: list[str]

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests.append(f"{self.command} {self.path}")
        if type(self).failures:
            type(self).failures -= 1
            self.say(503, {})
        elif self.asks_for_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.say(401, {})
        else:
            job = {
                **{"submission_id": f"{NAME}-1", "status": self.statuses[0]},
                "metadata": {RUN_KEY: NAME},
            }
            is_list = (self.command, self.path) == ("GET", "/api/jobs/")
            if self.path.endswith(f"{NAME}-1"):
                type(self).statuses = self.statuses[1:] or self.statuses
            elif self.command == "GET" and not is_list:
                self.say(404, {})
                return
            self.say(200, [job] if is_list else job)

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def say(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


class Clock:
    """Time that passes where somebody sleeps, in whole 10 s."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += max(10.0, seconds)


@pytest.fixture
def dashboard() -> Iterator[tuple[type[Dashboard], str]]:
    class Mine(Dashboard):
        requests: list[str] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Mine, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def launcher(url: str, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> RayLauncher:
    monkeypatch.setenv("CLUSTER_TOKEN", TOKEN)
    access = RayAccess(jobs_url=url, token_variable="CLUSTER_TOKEN")
    launch = LaunchSpec(
        **{"place": "ray", "address": "auto", "ray": access, "storage": "/shared/runs"},  # type: ignore[arg-type]
        resize_save_seconds=300,
    )
    assert stop_seconds(launch) == 360
    api = JobsApi(access, sleep=clock.sleep)
    return RayLauncher(launch, NAME, api=api, sleep=clock.sleep, clock=lambda: clock.now)


@pytest.mark.parametrize("failures", [0, 1], ids=["", "after an outage"])
def test_nothing_is_started_on_a_cluster_that_asks_for_no_token(
    failures: int, dashboard: tuple[type[Dashboard], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = dashboard
    monkeypatch.setattr(server, "asks_for_token", False)
    monkeypatch.setattr(server, "failures", failures)
    monkeypatch.setattr(server, "statuses", ("FAILED",))
    with pytest.raises(
        SpecError, match=r"it asks for no token.* RAY_AUTH_MODE=token and the token"
    ):
        launcher(url, monkeypatch, Clock()).submit(experiment(), retry=False)
    assert {request.partition(" ")[0] for request in server.requests} == {"GET"}
    monkeypatch.setattr(server, "asks_for_token", True)
    assert launcher(url, monkeypatch, Clock()).submit(experiment(), retry=False)


@pytest.mark.parametrize("grace_seconds", [None, 30.0, 500.0])
def test_a_job_that_goes_on_is_not_said_to_have_stopped(
    grace_seconds: float | None,
    dashboard: tuple[type[Dashboard], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    with pytest.raises(PlaceUnavailableError, match=f"{NAME}-1 was asked to stop, and is RUNNING"):
        launcher(dashboard[1], monkeypatch, clock).cancel(grace_seconds=grace_seconds)
    assert clock.now == (grace_seconds if grace_seconds == 500 else 390), "what Ray allows"


def test_a_job_that_saves_for_minutes_is_waited_for(
    dashboard: tuple[type[Dashboard], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = dashboard
    monkeypatch.setattr(server, "statuses", (*["RUNNING"] * 30, "STOPPED"))
    clock = Clock()
    assert launcher(url, monkeypatch, clock).cancel(grace_seconds=30)
    assert 300 <= clock.now <= 310
    assert not launcher(url, monkeypatch, clock).cancel(grace_seconds=None), "nothing is left"
