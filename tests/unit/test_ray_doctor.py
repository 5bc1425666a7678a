"""Doctor of Ray clusters: whether they ask for a token, and have room for the workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launcher.doctor import Check
from launcher.ray_doctor import ray_checks
from launcher.ray_here import ask_nodes, ray_here_checks
from rotescale.kuberay_spec import RAY_VERSION
from rotescale.launch_spec import LaunchSpec, RayAccess

TOKEN = "c29tZS10b2tlbg"
NODE = {"state": "ALIVE", "resources_total": {"CPU": 2.0, "memory": 1e9}}


class Dashboard(BaseHTTPRequestHandler):
    """What Ray's answers where nothing runs; each test says whom it lets in."""

    asks_for_token = True
    refusal = 401
    nodes: tuple[Mapping[str, Any], ...] = (NODE,)

    def do_GET(self) -> None:
        if self.asks_for_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send_response(self.refusal)
            self.end_headers()
            self.wfile.write(b"<html>log in</html>")
            return
        answers: dict[str, Any] = {
            "/api/version": {"ray_version": RAY_VERSION},
            "/api/jobs/": [],
            "/api/v0/nodes": {"data": {"result": {"result": self.nodes}}},
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answers[self.path.partition("?")[0]]).encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_CLUSTER_TOKEN", TOKEN)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def look(url: str) -> dict[str, Check]:
    access = RayAccess(jobs_url=url, token_variable="RAY_CLUSTER_TOKEN")
    launch = LaunchSpec(place="ray", address="auto", ray=access)
    return {check.name: check for check in ray_checks(launch, with_probe=False)}


@pytest.mark.parametrize("refusal", [401, 200], ids=["Ray", "a proxy's page"])
def test_a_dashboard_that_asks_for_a_token_is_in_order(
    refusal: int, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dashboard, "refusal", refusal)
    found = look(url)
    assert {name: check.verdict for name, check in found.items()} == {
        **{"address": "ok", "Ray": "ok", "token": "ok", "nodes": "ok"},
        "inside": "warn",
    }


def test_a_dashboard_that_takes_anything_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dashboard, "asks_for_token", False)
    check = look(url)["token"]
    assert check.verdict == "fail"
    assert "RAY_AUTH_MODE=token" in check.remedy


def test_nodes_that_are_dead_are_no_room(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dashboard, "nodes", ({**NODE, "state": "DEAD"},))
    assert look(url)["nodes"].verdict == "fail"


def here(tmp_path: Path, **answers: dict[str, Any]) -> dict[str, Check]:
    """The checks on a machine where Ray answers that with a token, and ``without`` one."""
    launch = LaunchSpec(
        place="ray", address="auto", storage=str(tmp_path), model_cache=str(tmp_path / "cache")
    )

    def ask(address: str, variables: Mapping[str, str]) -> dict[str, Any]:
        assert address == "auto"
        return answers["without" if variables.get("RAY_AUTH_MODE") == "disabled" else "with_token"]

    return {check.name: check for check in ray_here_checks(launch, ask=ask)}


def test_without_a_cluster_nothing_is_well(tmp_path: Path) -> None:
    found = here(tmp_path, with_token={"error": "ConnectionError: no running Ray instance"})
    assert found["address"].verdict == "fail"
    assert "no running Ray instance" in found["address"].words
    assert "ray start --head" in found["address"].remedy
    assert "token" not in found


def test_a_cluster_here_must_ask_for_a_token(tmp_path: Path) -> None:
    nodes = {"nodes": [{"CPU": 1.0}]}
    found = here(tmp_path, with_token=nodes, without={"error": "ConnectionError"})
    assert (found["address"].verdict, found["token"].verdict) == ("ok", "ok")
    assert found["nodes"].verdict == "fail"
    found = here(tmp_path, with_token=nodes, without=nodes)
    assert found["token"].verdict == "fail"
    assert "RAY_AUTH_TOKEN" in found["token"].remedy


def test_no_ray_is_found_where_nobody_listens() -> None:
    assert "refused" in ask_nodes("127.0.0.1:1", {})["error"]
