"""The client's tests pointed at a cluster that is not theirs, which is played here."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

from api_server import api_server
from kuberay_helpers import rendered
from kuberay_player import PretendedRay, playing

CLIENT = Path(__file__).with_name("test_kuberay_launcher.py")


def test_the_clients_tests_on_another_cluster(tmp_path: Path) -> None:
    ray = PretendedRay(tmp_path / "ray")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    with api_server() as server, playing(server, tmp_path / "player", ray=ray):
        server.namespace("team")
        theirs = copy.deepcopy(rendered())
        for one in theirs:
            one["metadata"]["namespace"] = "team"
            server.create(one)
        ran = subprocess.run(
            [*command, CLIENT],
            env={
                **os.environ,
                "KUBECONFIG": str(server.kubeconfig(tmp_path / "kubeconfig", context="theirs")),
                "ROTESCALE_TEST_CONTEXT": "theirs",
                "ROTESCALE_TEST_NAMESPACE": "team",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        made = {request.path for request in server.asked("POST", "/rayjobs")}
        left = [
            one["metadata"]["name"]
            for plural in ("configmaps", "rayjobs")
            for one in server.list(plural, namespace="team")
        ]
        assert left == [one["metadata"]["name"] for one in theirs], "a colleague's run is left"
    assert {path.partition("?")[0] for path in made} == {"/apis/ray.io/v1/namespaces/team/rayjobs"}
    # What is skipped says so, and it is not all of them.
    assert "NOT RUN on theirs" in ran.stdout
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) >= 20
