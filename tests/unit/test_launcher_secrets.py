"""No command prints or keeps a credential, not even where a server throws it back."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from kuberay_helpers import FULL, MICRO
from launcher_command import launcher_command

from launcher import jobs_api
from launcher.kuberay import cluster
from launcher.kuberay.names import job_name
from launcher.ray_jobs import FOLDER_KEY, RUN_KEY
from rotescale.credentials import HIDDEN

TOKEN = "c29tZXRoaW5nIG5vYm9keSBndWVzc2Vz"
"""Of no known shape: it is hidden because it is the one that was sent."""
VARIABLES = {
    "HF_TOKEN": "hf_QmVyR2hhaW5UaGVXb3JsZElzTm90",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYzzzz",
    "RAY_AUTH_TOKEN": "c29tZS1vdGhlci10b2tlbi1vZi1SYXk",
}
STATUSES = (200, 401, 403, 404, 409, 422, 500)
COMMANDS = [
    ("submit", str(MICRO)),
    ("submit", str(MICRO), "--dry-run"),
    ("submit", str(MICRO), "--dry-run=server"),
    ("render", str(MICRO)),
    ("diff", str(MICRO)),
    ("status", "micro"),
    ("status", "micro", "--json"),
    ("logs", "micro"),
    ("logs", "micro", "--follow"),
    ("list",),
    ("list", "--json"),
    ("cancel", "micro", "--grace", "0"),
    ("doctor",),
]
Run = Callable[..., str]


class Echo(BaseHTTPRequestHandler):
    """A server that repeats the request's headers in every answer."""

    status = 200
    asked = 0

    said: Callable[[str, str], object] | None = None
    """What it answers to a path, and to what was sent, where that is no error."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        type(self).asked += 1
        heard = " ".join(self.headers.values())
        said: object = {"message": f"you said: {heard}", "logs": "", "items": []}
        if type(self).said is not None:
            said = type(self).said(self.path, heard)
        body = json.dumps(said).encode()
        self.send_response(self.status, f"because of {self.headers.get('Authorization')}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """A command's output, whatever becomes of it; it asks once and does not wait."""
    monkeypatch.setenv("ROTESCALE_STATE", str(tmp_path / "state"))
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    for module in (jobs_api, cluster):
        monkeypatch.setattr(module, "patiently", lambda ask, **_: ask())

    def call(*arguments: str) -> str:
        launcher_command(monkeypatch, *arguments)
        printed = capsys.readouterr()
        return printed.out + printed.err

    return call


def look_for_secrets(text: str, where: str) -> None:
    for secret in (TOKEN, *VARIABLES.values()):
        assert secret not in text, f"{where}: {text}"


def ask_everything(run: Run, profile: Path, folder: Path) -> None:
    for command in COMMANDS:
        printed = run(*command, "--on", str(profile))
        look_for_secrets(printed, " ".join(command))
        # But for 409: what is there already was taken once.
        assert Echo.status == 409 or "would take it" not in printed
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("token", "kubeconfig"):
            look_for_secrets(path.read_bytes().decode(errors="replace"), str(path))


@pytest.mark.parametrize("status", STATUSES)
def test_a_ray_cluster_that_repeats_the_token(
    status: int, url: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "status", status)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    fields = {
        **{"name": "cluster", "place": "ray", "address": "auto"},
        **{"storage": str(tmp_path / "runs"), "ray": {"jobs_url": url, "token_file": str(token)}},
    }
    profile = tmp_path / "place.yaml"
    profile.write_text(yaml.safe_dump(fields))
    before = Echo.asked
    ask_everything(run, profile, tmp_path)
    assert Echo.asked > before + len(COMMANDS) // 2


@pytest.mark.parametrize("state", ["RUNNING", "FAILED"])
def test_a_ray_cluster_whose_jobs_print_the_token(
    state: str, url: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = job_name("micro", storage=str(tmp_path / "runs"))

    def said(path: str, heard: str) -> object:
        job = {
            **{"submission_id": f"{name}-1", "status": state, "message": f"it had {heard}"},
            "metadata": {RUN_KEY: name, FOLDER_KEY: str(tmp_path / "runs" / "micro")},
        }
        if path.endswith("/logs"):
            return {"logs": f"line 1\nthe driver prints {heard}\n"}
        return [job] if path == "/api/jobs/" else job

    monkeypatch.setattr(Echo, "said", staticmethod(said))
    monkeypatch.setenv("CLUSTER_TOKEN", TOKEN)
    fields = {
        **{"name": "cluster", "place": "ray", "address": "auto", "storage": str(tmp_path / "runs")},
        "ray": {"jobs_url": url, "token_variable": "CLUSTER_TOKEN"},
    }
    profile = tmp_path / "place.yaml"
    profile.write_text(yaml.safe_dump(fields))
    printed = run("logs", "micro", "--on", str(profile))
    assert "the driver prints" in printed
    for command in (("status", "micro", "--json"), ("status", "micro"), ("list", "--json")):
        printed += run(*command, "--on", str(profile))
    assert state in printed
    assert HIDDEN in printed
    look_for_secrets(printed, "all of it")


@pytest.mark.parametrize("status", STATUSES)
def test_a_kubernetes_cluster_that_repeats_the_token(
    status: int, url: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "status", status)
    kubeconfig = {
        **{"apiVersion": "v1", "kind": "Config", "current-context": "here"},
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": TOKEN}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    fields = copy.deepcopy(FULL)
    fields["kuberay"]["context"] = None
    profile = tmp_path / "place.yaml"
    profile.write_text(yaml.safe_dump(fields))
    before = Echo.asked
    ask_everything(run, profile, tmp_path)
    assert Echo.asked > before + len(COMMANDS) // 2
