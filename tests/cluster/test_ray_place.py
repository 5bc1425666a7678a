"""A run on a real Ray cluster, with its token: submitted once, lost, saved, moved, finished."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import MICRO, prepare, run_workers
from launcher_shell import drivers, launch
from ray_cluster import RayCluster, ray_cluster
from recovery_helpers import assert_equal_runs
from tcp_proxy import Tunnel

from launcher import ray_jobs
from launcher.job import PlaceUnavailableError
from launcher.jobs_api import JobsApi
from launcher.ray_doctor import ray_checks
from launcher.ray_here import ray_here_checks
from launcher.target import Target
from rotescale.errors import SpecError
from rotescale.launch_spec import LaunchSpec, RayAccess
from rotescale.records import read_records
from rotescale.run_dir import RunDir
from rotescale.spec import ExperimentSpec
from rotescale.spec_file import load_spec

SPEC = (
    *("--set", "evaluation.base=false", "--set", "checkpoints.every_steps=2"),
    *("--set", "evaluation.generation_facts=0", "--set", "phases.memorize.epochs=15"),
)
WAIT_SECONDS = 180


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Sockets want a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    with ray_cluster(folder, num_cpus=3, OMP_NUM_THREADS="1") as found:
        yield found
    shutil.rmtree(folder, ignore_errors=True)


class Shell:
    """The launcher's command line on a laptop: a process each, with its own environment."""

    def __init__(self, cluster: RayCluster, folder: Path) -> None:
        self.environment = {
            **os.environ,
            "ROTESCALE_STATE": str(folder / "state"),
            "CLUSTER_TOKEN": cluster.token,
            # What Ray's own client would follow in preference.
            "RAY_ADDRESS": "http://127.0.0.1:1",
        }

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Output of a command that ends with ``code``."""
        printed = launch(*arguments, environment=self.environment, code=code)
        assert self.environment["CLUSTER_TOKEN"] not in printed
        return printed

    def status(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("status", run, "--json"))
        return found


def profile(path: Path, **fields: Any) -> str:
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen: {what}"
        time.sleep(0.2)


@pytest.mark.slow
def test_lost_cancelled_moved_and_finished(
    cluster: RayCluster, tmp_path: Path, model_cache: Path
) -> None:
    here = {"storage": str(tmp_path / "runs"), "model_cache": str(model_cache)}
    place = profile(
        tmp_path / "ray.yaml",
        **here,
        **{"name": "cluster", "place": "ray", "address": "auto"},
        ray={"jobs_url": cluster.jobs_url, "token_variable": "CLUSTER_TOKEN"},
    )
    local = profile(tmp_path / "local.yaml", name="laptop", **here)
    shell = Shell(cluster, tmp_path)
    run_dir = RunDir(tmp_path / "runs" / "micro")

    said = shell("submit", str(MICRO), *SPEC, "--on", place)
    assert "micro started" in said
    assert "is running already" in shell("submit", str(MICRO), *SPEC, "--on", place)
    assert len(JobsApi(access(cluster)).jobs()) == 1
    assert shell.status("micro")["state"] in ("pending", "running")
    [listed] = json.loads(shell("list", "--on", place, "--json"))
    assert (listed["name"], listed["run_folder"]) == (
        shell.status("micro")["name"],
        str(run_dir.root),
    )

    def checkpoint() -> str | None:
        progress = shell.status("micro")["progress"]
        return None if progress is None else progress["checkpoint"]

    wait_for("a first checkpoint", lambda: checkpoint() is not None)
    (driver,) = drivers("experiment.json")
    os.kill(driver, signal.SIGKILL)
    wait_for("the supervisor's restart", lambda: len(run_dir.launch_numbers()) == 2)
    (ending,) = shell.status("micro")["restarts"]
    assert (ending["kind"], ending["exit_code"]) == ("infrastructure", -signal.SIGKILL)
    wait_for("the second attempt", lambda: (run_dir.newest_attempt() or 0) >= 2)
    assert "is at work at cluster (ray)" in shell("resume", "micro", "--on", local, code=2)

    told = shell("cancel", "micro")
    assert "stopped" in told
    status = shell.status("micro")
    assert (status["state"], drivers("experiment.json")) == ("stopped", [])
    assert status["layers"]["Ray job"].endswith("STOPPED")
    assert "saved" in shell("logs", "micro", "--lines", "200")
    # What was trained until it was asked is saved; training goes on until the driver has ended.
    told = [one for one in read_records(run_dir).events if one.attempt == 2]
    (asked,) = [place for place, one in enumerate(told) if one.name == "save_request"]
    answer = next(one.details for one in told[asked:] if one.name == "checkpoint")
    _, _, newest = status["progress"]["checkpoint"].partition(f"-{answer['phase']}-step-")
    assert int(newest.partition("-")[0]) >= answer["step"]

    assert "micro started" in shell("resume", "micro", "--on", local)
    wait_for("the end on the laptop", lambda: shell.status("micro")["state"] == "finished")
    spec = load_spec(ExperimentSpec, MICRO, [part for part in SPEC if part != "--set"])
    undisturbed = prepare(spec, tmp_path / "alone", cache=model_cache, num_workers=2)
    assert run_workers(undisturbed, world_size=2) == [0, 0]
    assert_equal_runs(run_dir, undisturbed)


def access(cluster: RayCluster, **fields: Any) -> RayAccess:
    os.environ["CLUSTER_TOKEN"] = cluster.token
    return RayAccess(**{"jobs_url": cluster.jobs_url, "token_variable": "CLUSTER_TOKEN", **fields})


def test_a_wrong_token_and_none_are_told_apart(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTER_TOKEN", "0" * 32)
    wrong = RayAccess(jobs_url=cluster.jobs_url, token_variable="CLUSTER_TOKEN")
    with pytest.raises(SpecError, match=r"refuses the token from ray\.token_variable"):
        JobsApi(wrong).jobs()
    file = tmp_path / "token"
    file.write_text(cluster.token + "\n")
    by_file = RayAccess(jobs_url=cluster.jobs_url, token_file=str(file))
    with pytest.raises(SpecError, match=r"others may read it \(mode 644\); chmod 600"):
        JobsApi(by_file)
    file.chmod(0o600)
    assert JobsApi(by_file).version()["ray_version"]


def test_an_id_is_taken_once(cluster: RayCluster) -> None:
    api = JobsApi(access(cluster))
    body = {"entrypoint": "echo one; sleep 2; echo two", "submission_id": "twice-1"}
    assert api.submit(body)
    assert not api.submit(body)
    assert [line for line in "".join(api.follow("twice-1")).splitlines() if " " not in line] == [
        *("one", "two")
    ]
    job = api.job("twice-1")
    assert job is not None
    assert (job.status, job.exit_code) == ("SUCCEEDED", 0)
    assert api.tail(job, num_lines=1).splitlines() == ["two"]
    assert api.tail(replace(job, submission_id="never"), num_lines=1) == ""
    assert api.job("never") is None


def test_of_launchers_that_submit_at_once_one_has_started_it(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "ENTRYPOINT", "sleep 120")
    launch = LaunchSpec(
        place="ray", address="auto", storage=str(tmp_path / "runs"), ray=access(cluster)
    )
    target = Target("micro", launch)
    spec = load_spec(ExperimentSpec, MICRO)
    ready = threading.Barrier(6)

    def submit(_: int) -> bool:
        launcher = target.launcher()
        ready.wait()
        return launcher.submit(spec, retry=False)

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(submit, range(6)))
    mine = [one for one in JobsApi(access(cluster)).jobs() if target.name in one.submission_id]
    assert target.launcher().cancel(grace_seconds=30)
    assert sorted(answers) == [False] * 5 + [True]
    assert [one.submission_id for one in mine] == [f"{target.name}-1"]


@pytest.fixture
def tunnel(cluster: RayCluster) -> Iterator[Tunnel]:
    found = Tunnel(int(cluster.jobs_url.rpartition(":")[2]))
    yield found
    found.stop()


def through(tunnel: Tunnel, cluster: RayCluster, *, patience_seconds: float = 30.0) -> JobsApi:
    found = access(cluster, jobs_url=f"http://127.0.0.1:{tunnel.port}")
    return JobsApi(found, patience_seconds=patience_seconds)


def test_an_answer_that_is_lost_starts_nothing_twice(cluster: RayCluster, tunnel: Tunnel) -> None:
    api = through(tunnel, cluster)
    body = {"entrypoint": "true", "submission_id": "lost-1"}
    assert api.job("lost-1") is None
    answers = iter([0, 1])

    def lose_the_second(*arguments: Any, **fields: Any) -> Any:
        tunnel.swallow = next(answers, 0)
        return send(*arguments, **fields)

    send, api._send = api._send, lose_the_second  # type: ignore[method-assign]
    assert api.submit(body), "it was this one that submitted it"
    assert not api.submit(body)
    assert len([job for job in api.jobs() if job.submission_id == "lost-1"]) == 1


def test_lines_come_once_over_a_tunnel_that_dies(cluster: RayCluster, tunnel: Tunnel) -> None:
    api = through(tunnel, cluster)
    words = "for i in 1 2 3 4 5 6 7 8; do echo line-$i; sleep 1; done"
    assert api.submit({"entrypoint": words, "submission_id": "followed-1"})
    lines: list[str] = []

    def follow() -> None:
        text = "".join(api.follow("followed-1"))
        lines.extend(line for line in text.splitlines() if line.startswith("line-"))

    following = threading.Thread(target=follow)
    following.start()
    for _ in range(2):
        time.sleep(2.5)
        tunnel.stop()
        time.sleep(0.5)
        tunnel.start()
    following.join(timeout=120)
    assert lines == [f"line-{number}" for number in range(1, 9)]
    assert tunnel.num_connections > 2


def test_a_dashboard_that_is_away_is_waited_for_and_then_said(
    cluster: RayCluster, tunnel: Tunnel
) -> None:
    api = through(tunnel, cluster)
    tunnel.stop()
    threading.Timer(1.5, tunnel.start).start()
    assert api.jobs() is not None
    tunnel.stop()
    with pytest.raises(PlaceUnavailableError, match="does not answer"):
        through(tunnel, cluster, patience_seconds=0.5).jobs()


@pytest.mark.slow
def test_a_dashboard_that_restarts(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    with ray_cluster(folder, num_cpus=1, block=False) as found:
        api = JobsApi(access(found), patience_seconds=90.0)
        words = "for i in $(seq 40); do echo line-$i; sleep 1; done"
        body = {"entrypoint": words, "submission_id": "through-1"}
        assert api.submit(body)
        lines: list[str] = []

        def follow() -> None:
            text = "".join(api.follow("through-1"))
            lines.extend(line for line in text.splitlines() if line.startswith("line-"))

        following = threading.Thread(target=follow)
        following.start()
        wait_for("the job's first line", lambda: "line-1" in api.logs("through-1"))
        dashboard = found.restart_dashboard(pause_seconds=3.0)
        assert not found.answers()
        # The job never stopped, and is not begun a second time.
        job = api.job("through-1")
        assert job is not None
        assert job.status == "RUNNING"
        assert not api.submit(body)
        following.join(timeout=180)
        assert lines == [f"line-{number}" for number in range(1, 41)]
        assert [one.status for one in api.jobs()] == ["SUCCEEDED"]
    dashboard.wait(timeout=30)
    shutil.rmtree(folder, ignore_errors=True)


def test_doctor_looks_inside(cluster: RayCluster, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    launch = LaunchSpec(
        place="ray",
        address="auto",
        storage=str(tmp_path / "runs"),
        model_cache=str(file),
        ray=access(cluster),
    )
    # The dashboard answers before the node has joined.
    wait_for("a node", lambda: bool(JobsApi(access(cluster)).nodes()))
    found = {check.name: check for check in ray_checks(launch, with_probe=True)}
    assert {name for name, check in found.items() if check.verdict != "ok"} == {"model_cache"}
    assert "packages" in found
    assert found["token"].words.startswith("it is asked for and taken")
    assert found["nodes"].words.startswith("1 with 3 CPUs and 0 GPUs have room for 3 workers")


def test_doctor_asks_a_cluster_of_this_machine(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [server] = cluster.processes("gcs_server")
    line = Path(f"/proc/{server}/cmdline").read_bytes().decode().split("\0")
    [port] = [one.partition("=")[2] for one in line if one.startswith("--gcs_server_port=")]
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
    launch = LaunchSpec(
        place="ray",
        address=f"127.0.0.1:{port}",
        num_workers=(4, 4),
        storage=str(tmp_path / "runs"),
        model_cache=str(tmp_path / "models"),
    )
    found = {check.name: check for check in ray_here_checks(launch)}
    assert {name for name, check in found.items() if check.verdict != "ok"} == {"nodes"}
    assert found["nodes"].words.endswith("have room for 3 workers of 1 CPU(s); 4 are wanted")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    assert {check.verdict for check in ray_here_checks(launch) if check.name == "address"} == {
        "fail"
    }
