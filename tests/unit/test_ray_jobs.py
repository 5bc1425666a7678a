"""The request to a running Ray cluster: the same each time, with no token and no shell's food."""

from __future__ import annotations

import io
import json
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_helpers import CONFIGS, MICRO, experiment

from launcher import cli
from launcher.job import MayHaveStartedError, PlaceUnavailableError
from launcher.jobs_api import JobsApi
from launcher.patience import LONGEST_WAIT
from launcher.ray_jobs import ENTRYPOINT, describe, render
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec, parse_spec

PROFILE = CONFIGS / "launch" / "ray-cluster.yaml"
FIELDS: dict[str, Any] = {
    "place": "ray",
    "address": "auto",
    "storage": "/shared/runs",
    "ray": {"jobs_url": "https://ray.example.com", "token_variable": "RAY_CLUSTER_TOKEN"},
}


def place(**changes: Any) -> LaunchSpec:
    ray = {**FIELDS["ray"], **changes.pop("ray", {})}
    return parse_spec(LaunchSpec, {**FIELDS, "ray": ray, **changes}, where="place.yaml")


def test_the_job_reads_the_same_experiment(tmp_path: Path) -> None:
    request = render(experiment("seed=4"), place())
    with zipfile.ZipFile(io.BytesIO(request.package)) as package:
        package.extractall(tmp_path)
    assert load_spec(ExperimentSpec, tmp_path / "experiment.json") == experiment("seed=4")
    inside = load_spec(LaunchSpec, tmp_path / "launch.json")
    assert (inside.place, inside.address, inside.ray) == ("ray", "auto", None)
    assert request.entrypoint == ENTRYPOINT
    assert {part for part in ENTRYPOINT.split() if part.endswith(".json")} == {
        path.name for path in tmp_path.iterdir()
    }


def test_the_same_run_is_the_same_request() -> None:
    one, other = render(experiment(), place()), render(experiment(), place())
    assert one.package == other.package
    assert one.body == other.body
    assert one.body["runtime_env"]["working_dir"] == f"gcs://{one.package_name}"
    assert one.package_path == f"/api/packages/gcs/{one.package_name}"
    changed = render(experiment("seed=1"), place())
    assert changed.package_name != one.package_name
    assert changed.submission_id == one.submission_id


class Leaving(BaseHTTPRequestHandler):
    """A dashboard that knows no job, and goes away when one is sent, or before it is."""

    is_away = False

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "POST":
            type(self).is_away = True
        self.send_response(503 if self.is_away else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.mark.parametrize("is_away", [False, True])
def test_a_job_may_be_there_only_once_it_was_sent(
    is_away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_CLUSTER_TOKEN", "x")
    monkeypatch.setattr(Leaving, "is_away", is_away)
    with ThreadingHTTPServer(("127.0.0.1", 0), Leaving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        access = place(ray={"jobs_url": f"http://127.0.0.1:{server.server_address[1]}"}).ray
        assert access is not None
        with pytest.raises(PlaceUnavailableError) as stopped:
            JobsApi(access, patience_seconds=0.1).submit(render(experiment(), place()).body)
        server.shutdown()
    assert isinstance(stopped.value, MayHaveStartedError) == (not is_away)


class Busy(BaseHTTPRequestHandler):
    """A proxy before a dashboard that says when to come back, and then lets through."""

    answers: list[tuple[int, str | None]]

    def do_GET(self) -> None:
        status, retry_after = self.answers.pop(0)
        body = b"[]" if status == 200 else b""
        self.send_response(status)
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def test_a_dashboard_that_says_when_to_come_back_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_CLUSTER_TOKEN", "x")
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    Busy.answers = [(429, "3"), (503, None), (503, date), (503, "3600"), (200, None)]
    waits: list[float] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        access = place(ray={"jobs_url": f"http://127.0.0.1:{server.server_address[1]}"}).ray
        assert access is not None
        assert JobsApi(access, sleep=waits.append).jobs() == []
        server.shutdown()
    assert waits == [3.0, 1.0, 2.0, LONGEST_WAIT]


def test_each_attempt_has_an_id_of_its_own() -> None:
    ids = [render(experiment(), place(), attempt=number).submission_id for number in (1, 2, 3)]
    assert len(set(ids)) == 3
    assert not [key for key in render(experiment(), place()).body if key.startswith("entrypoint_")]


def test_the_token_is_named_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_CLUSTER_TOKEN", "c2VjcmV0")
    request = render(experiment(), place())
    assert "c2VjcmV0" not in json.dumps(describe(request))
    assert "RAY_CLUSTER_TOKEN" not in json.dumps(describe(request))


def test_render_prints_the_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rotescale-launch", "render", str(MICRO), "--on", str(PROFILE)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    request = render(experiment(), load_spec(LaunchSpec, PROFILE))
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == [describe(request)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ray": {"jobs_url": "http://ray.example.com"}}, "a token is not encryption; use https"),
        ({"ray": {"jobs_url": "https://a:b@example.com"}}, "ray.jobs_url"),
        ({"ray": {"jobs_url": "https://example.com/$(id)"}}, "ray.jobs_url"),
        ({"ray": {"token_variable": None}}, "token_variable or token_file, one of the two"),
        ({"ray": {"token_file": "/token"}}, "token_variable or token_file, one of the two"),
        ({"ray": {"token_variable": "hunter2!"}}, "ray.token_variable"),
        ({"ray": {"token": "hunter2!"}}, "ray.token: unknown key"),
        ({"place": "local", "address": None}, "section ray is for place: ray"),
    ],
)
def test_a_place_that_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        place(**changes)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_shipped_profile_takes_the_token_from_a_file() -> None:
    ray = load_spec(LaunchSpec, PROFILE).ray
    assert ray is not None
    assert (ray.token_variable, ray.token_file) == (None, "~/.config/rotescale/ray-token")


def test_a_tunnel_needs_no_encryption() -> None:
    assert place(ray={"jobs_url": "http://localhost:8265"}).ray is not None


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("seed=0", {"storage": "runs"}),
        ("facts={source: files, paths: [mother.csv]}", {}),
        ("facts={source: files, paths: [/shared/../etc/passwd]}", {}),
        ("evaluation={harness_tasks: [x], harness_folder: tasks}", {"allow_task_code": True}),
    ],
)
def test_a_folder_of_this_machine_is_refused(override: str, changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="give an absolute path of a shared folder"):
        render(experiment(override), place(**changes))


def test_a_place_that_says_not_how_it_is_reached() -> None:
    with pytest.raises(SpecError, match="without a section ray"):
        render(experiment(), place().model_copy(update={"ray": None}))
