"""The player with real Ray: preempted, failed and tried again, one RayJob succeeds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from api_server import ApiServer, api_server
from kuberay_player import playing
from player_ray import marked
from ray_job_manifests import queues, ray_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROGRAM = """
import os, pathlib, sys, time
folder = pathlib.Path(os.environ["FOLDER"])
attempt = len(list(folder.iterdir()))
(folder / str(attempt)).write_text(str(os.getpid()))
if attempt == 0:
    time.sleep(600)
if attempt == 1:
    sys.exit("the second attempt fails")
import ray
ray.init(log_to_driver=False)
work = ray.remote(num_cpus=1)(lambda: sum(range(10)))
print("a worker says", ray.get(work.remote()))
"""


def soon(true: Callable[[], Any]) -> Any:
    """What it returns once that is true."""
    until = time.monotonic() + 300
    while not (found := true()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def status(server: ApiServer) -> dict[str, Any]:
    found: dict[str, Any] = server.get("rayjobs", "run").get("status", {})
    return found


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_preempted_failed_and_done(tmp_path: Path) -> None:
    folder = tmp_path / "attempts"
    folder.mkdir()
    with api_server(tls=True, token="a-user") as server, playing(server, tmp_path) as player:
        for one in queues():
            server.create(one)
        server.create(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "program"},
                "data": {"program.py": PROGRAM},
            }
        )
        server.create(
            ray_job(
                entrypoint="python /etc/rotescale/program.py",
                environment={"FOLDER": str(folder)},
                spec_map="program",
                queue="research",
                backoffLimit=1,
            )
        )
        soon(lambda: status(server).get("jobDeploymentStatus") == "Suspended")
        player.kueue.admit("run")
        first = int(soon(lambda: (folder / "0").exists() and (folder / "0").read_text()))
        assert is_alive(first)
        head = player.pods("run", kind="head")[0]
        assert first in marked(head["metadata"]["uid"])
        player.kueue.preempt("run")
        soon(lambda: not is_alive(first))
        assert not marked(head["metadata"]["uid"])
        soon(lambda: status(server).get("jobDeploymentStatus") == "Suspended")
        player.kueue.admit("run")
        soon(lambda: status(server).get("jobDeploymentStatus") in ("Complete", "Failed"))
        done = status(server)
        assert done["jobStatus"] == "SUCCEEDED", done
        assert (done["failed"], done["succeeded"]) == (1, 1)
        assert len(list(folder.iterdir())) == 3
        logs = [path.read_text() for path in tmp_path.glob("default_*_ray-job-submitter.log")]
        assert any("a worker says 45" in log for log in logs)
        assert any("the second attempt fails" in log for log in logs)
