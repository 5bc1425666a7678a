"""A dashboard behind TLS is spoken to only where its certificate can be trusted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from certificates import Certificates

from launcher.jobs_api import JobsApi
from rotescale.errors import SpecError
from rotescale.launch_spec import RayAccess

TOKEN = "a-token-that-is-long-enough"
LINES = ["one\n", "two\n", "three\n"]


class Dashboard:
    """Ray's answers about one job, by HTTPS and over a WebSocket of TLS."""

    def __init__(self) -> None:
        self.certificates = Certificates()
        self.tokens: list[str | None] = []
        """What each request bore."""
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def start(self) -> None:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(30)
        self.url = f"https://127.0.0.1:{port}"

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _serve(self) -> int:
        app = web.Application()
        app.router.add_get("/api/jobs/{id}", self._job)
        app.router.add_get("/api/jobs/{id}/logs/tail", self._tail)
        app.router.add_get("/api/jobs/{id}/logs", self._logs)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.certificates.context())
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    def _note(self, request: web.Request) -> None:
        self.tokens.append(request.headers.get("Authorization"))

    async def _job(self, request: web.Request) -> web.Response:
        self._note(request)
        return web.json_response({"submission_id": "job", "status": "SUCCEEDED"})

    async def _logs(self, request: web.Request) -> web.Response:
        self._note(request)
        return web.json_response({"logs": "".join(LINES)})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        self._note(request)
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        for line in LINES:
            await stream.send_str(line)
        await stream.close()
        return stream


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    found = Dashboard()
    found.start()
    yield found
    found.stop()


@pytest.fixture
def home(tmp_path: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the dashboard's authority, another one, and a file that is none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TOKEN", TOKEN)
    (tmp_path / "ours.pem").write_bytes(dashboard.certificates.authority)
    (tmp_path / "others.pem").write_bytes(Certificates().authority)
    (tmp_path / "text.pem").write_text("no certificate\n")
    return tmp_path


def jobs_of(dashboard: Dashboard, ca_file: str | None) -> JobsApi:
    access = RayAccess(jobs_url=dashboard.url, token_variable="TOKEN", ca_file=ca_file)
    return JobsApi(access, patience_seconds=0.2, sleep=lambda _: None)


@pytest.mark.usefixtures("home")
def test_a_certificate_of_an_authority_that_is_named_is_trusted(dashboard: Dashboard) -> None:
    jobs = jobs_of(dashboard, "~/ours.pem")
    job = jobs.job("job")
    assert job is not None
    assert job.status == "SUCCEEDED"
    assert list(jobs.follow("job")) == LINES
    assert set(dashboard.tokens) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("ca_file", [None, "~/others.pem"])
@pytest.mark.usefixtures("home")
def test_any_other_is_not_and_gets_no_token(dashboard: Dashboard, ca_file: str | None) -> None:
    jobs = jobs_of(dashboard, ca_file)
    words = r"its certificate cannot be trusted \(.*\); name its authority's in ray.ca_file"
    with pytest.raises(SpecError, match=words):
        jobs.job("job")
    with pytest.raises(SpecError, match=words):
        list(jobs.follow("job"))
    assert dashboard.tokens == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere.pem", "No such file"), ("text.pem", "no certificates in PEM")],
)
@pytest.mark.usefixtures("home")
def test_a_file_without_certificates_is_named(dashboard: Dashboard, name: str, reason: str) -> None:
    with pytest.raises(SpecError, match=rf"ray.ca_file ~/{name}: cannot be used \({reason}"):
        jobs_of(dashboard, f"~/{name}")
