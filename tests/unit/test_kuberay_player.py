"""The player of KubeRay and Kueue without processes: the states of a RayJob, and who says why."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import ApiServer, api_server
from kuberay_player import KubeRayPlayer, PretendedRay, playing
from ray_job_manifests import queues, ray_job

Object = dict[str, Any]
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as found:
        yield found


@pytest.fixture
def ray(tmp_path: Path) -> PretendedRay:
    return PretendedRay(tmp_path)


@pytest.fixture
def player(server: ApiServer, ray: PretendedRay, tmp_path: Path) -> Iterator[KubeRayPlayer]:
    with playing(server, tmp_path, ray=ray) as found:
        found.poll_seconds = 0.05
        yield found


def soon(true: Callable[[], Any]) -> Any:
    """What it returns once that is true."""
    until = time.monotonic() + 60
    while not (found := true()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def reached(server: ApiServer, stage: str, job: str = "", name: str = "run") -> Object:
    """The status of the RayJob once its deployment, and its job, have come to that."""

    def there() -> Object | None:
        status: Object = server.get("rayjobs", name).get("status", {})
        good = status.get("jobDeploymentStatus") == stage
        return status if good and (not job or status.get("jobStatus") == job) else None

    found: Object = soon(there)
    return found


def conditions(server: ApiServer) -> dict[str, tuple[str, str, str]]:
    workload = server.list("workloads")[0]
    return {
        one["type"]: (one["status"], one["reason"], one["message"])
        for one in workload.get("status", {}).get("conditions", [])
    }


def reasons(server: ApiServer) -> set[str]:
    return {one["reason"] for one in server.list("events")}


def test_a_job_runs_and_its_cluster_goes(
    server: ApiServer, player: KubeRayPlayer, ray: PretendedRay
) -> None:
    server.create(ray_job(entrypoint="work --on it"))
    status = reached(server, "Running", "RUNNING")
    assert status["dashboardURL"].endswith("-head-svc.default.svc.cluster.local:8265")
    head, worker = (player.pods("run", kind=kind)[0] for kind in ("head", "worker"))
    assert head["metadata"]["name"].startswith(f"{status['rayClusterName']}-head-")
    assert worker["status"]["phase"] == "Running"
    assert len(head["spec"]["containers"]) == 2
    log = server.log_file("default", head["metadata"]["name"], "ray-job-submitter")
    assert log is not None
    soon(lambda: "Running entrypoint for job" in log.read_text())
    assert "work --on it" in log.read_text()
    ray.finish(status["jobId"], "SUCCEEDED", "Job finished successfully.")
    done = reached(server, "Complete", "SUCCEEDED")
    assert (done["failed"], done["succeeded"]) == (0, 1)
    assert done["endTime"]
    soon(lambda: not server.list("rayclusters") and not server.list("pods"))
    assert {"CreatedRayCluster", "Scheduled", "Pulled", "Started"} <= reasons(server)


def test_what_fails_is_tried_again_on_another_cluster(
    server: ApiServer, player: KubeRayPlayer, ray: PretendedRay
) -> None:
    server.create(ray_job(backoffLimit=1))
    first = reached(server, "Running", "RUNNING")
    ray.finish(first["jobId"], "FAILED", "exit code 1")
    second = soon(
        lambda: (
            (found := reached(server, "Running", "RUNNING"))["jobId"] != first["jobId"] and found
        )
    )
    assert second["rayClusterName"] != first["rayClusterName"]
    assert (second["failed"], second.get("reason")) == (1, None)
    player.kill_pod(player.pods("run", kind="head")[0], reason="OOMKilled")
    done = reached(server, "Failed")
    assert (done["reason"], done["failed"]) == ("AppFailed", 2)
    assert "OOMKilled (exit code 137)" in done["message"]


def test_a_queue_admits_preempts_and_admits_again(
    server: ApiServer, player: KubeRayPlayer, ray: PretendedRay
) -> None:
    server.create(ray_job(queue="research"))
    reached(server, "Suspended")
    waiting = ("False", "Inadmissible", "LocalQueue research doesn't exist")
    soon(lambda: server.list("workloads") and conditions(server).get("QuotaReserved") == waiting)
    for one in queues():
        server.create(one)
    soon(lambda: conditions(server)["QuotaReserved"][1] == "Pending")
    assert not server.list("pods")
    player.kueue.admit("run")
    first = reached(server, "Running", "RUNNING")
    assert conditions(server)["Admitted"] == ("True", "Admitted", "The workload is admitted")
    player.kueue.preempt("run")
    reached(server, "Suspended")
    soon(lambda: conditions(server)["QuotaReserved"][0] == "False")
    assert conditions(server)["Evicted"][:2] == ("True", "Preempted")
    assert conditions(server)["Requeued"][:2] == ("True", "Preempted")
    assert not server.list("rayclusters")
    player.kueue.admit("run")
    second = reached(server, "Running", "RUNNING")
    assert (second["failed"], second["jobId"] != first["jobId"]) == (0, True)
    assert conditions(server)["Evicted"][2].startswith("Previously: Preempted to accommodate")
    ray.finish(second["jobId"], "SUCCEEDED")
    reached(server, "Complete")
    soon(lambda: conditions(server).get("Finished", ("",))[0] == "True")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadata": {"name": "r" * 48}}, "no more than 47"),
        ({"spec": {"shutdownAfterJobFinishes": False, "suspend": True}}, "to be suspended"),
        ({"spec": {"ttlSecondsAfterFinished": -1}}, "non-negative integer"),
        ({"spec": {"submissionMode": "InteractiveMode", "backoffLimit": 1}}, "Interactive"),
    ],
)
def test_the_operator_refuses(
    server: ApiServer, player: KubeRayPlayer, change: Object, words: str
) -> None:
    job = ray_job()
    for key, fields in change.items():
        job[key] |= fields
    server.create(job)
    name = job["metadata"]["name"]
    assert words in reached(server, "ValidationFailed", name=name)["message"]
    assert not server.list("rayclusters")


def test_why_pods_wait(server: ApiServer, player: KubeRayPlayer) -> None:
    player.nodes.unschedulable = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
    server.create(ray_job(spec_map="specs"))

    def states() -> set[str]:
        found = set()
        for pod in server.list("pods"):
            for one in pod["status"].get("containerStatuses", []):
                found.add(one["state"].get("waiting", {}).get("reason"))
        return found

    soon(lambda: "FailedScheduling" in reasons(server))
    player.nodes.unschedulable = None
    player.nodes.image_error = "manifest unknown"
    soon(lambda: "FailedMount" in reasons(server))
    server.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "specs"}, "data": {}}
    )
    soon(lambda: "ImagePullBackOff" in states())
    assert reached(server, "Initializing")
    player.nodes.image_error = None
    reached(server, "Running")


def test_deadlines(server: ApiServer, player: KubeRayPlayer) -> None:
    server.create(ray_job(activeDeadlineSeconds=1, backoffLimit=3))
    assert reached(server, "Failed")["reason"] == "DeadlineExceeded"
    player.nodes.unschedulable = "no nodes"
    server.create(ray_job("late", preRunningDeadlineSeconds=1))
    assert reached(server, "Failed", name="late")["reason"] == "PreRunningDeadlineExceeded"


def test_a_lost_worker_is_replaced_and_a_deleted_job_leaves_nothing(
    server: ApiServer, player: KubeRayPlayer, ray: PretendedRay
) -> None:
    server.create(ray_job(num_workers=2))
    job_id = reached(server, "Running", "RUNNING")["jobId"]
    lost = player.pods("run", kind="worker")[0]
    player.delete_pod(lost)
    soon(lambda: lost["metadata"]["uid"] not in ray.up)
    soon(lambda: len(player.pods("run", kind="worker")) == 2)
    assert reached(server, "Running", "RUNNING")["jobId"] == job_id
    server.delete("rayjobs", "run")
    soon(lambda: not server.list("rayjobs") and not server.list("pods"))
    assert ray.jobs[job_id].status == "STOPPED"
    soon(lambda: not ray.up)


def test_old_processes_may_outlive_their_pods(
    server: ApiServer, player: KubeRayPlayer, ray: PretendedRay
) -> None:
    player.nodes.overlap_seconds = 600
    server.create(ray_job(backoffLimit=1))
    first = reached(server, "Running", "RUNNING")
    old = set(ray.up)
    ray.finish(first["jobId"], "FAILED")
    soon(lambda: len(ray.up) == 4)
    assert old < ray.up
    assert len(server.list("pods")) == 2


def with_hooks(grace_seconds: int) -> Object:
    job = ray_job()
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        name = spec["containers"][0]["name"]
        spec["terminationGracePeriodSeconds"] = grace_seconds
        spec["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": ["leave", name]}}}
    return job


def test_pods_that_are_deleted_run_their_hooks_first(
    server: ApiServer, player: KubeRayPlayer, ray: PretendedRay
) -> None:
    player.nodes.keeps_grace = True
    server.create(with_hooks(600))
    job_id = reached(server, "Running", "RUNNING")["jobId"]
    server.delete("rayjobs", "run")
    soon(lambda: len(ray.executed) == 2)
    assert sorted(ray.executed) == [("leave", "ray-head"), ("leave", "ray-worker")]
    # Meanwhile everything runs, and what it prints is still read.
    assert len(ray.up) == len(server.list("pods")) == 2
    head = player.pods("run", kind="head")[0]["metadata"]["name"]
    ray.write(job_id, "saved")
    log = server.log_file("default", head, "ray-job-submitter")
    assert log is not None
    soon(lambda: "saved" in log.read_text())
    ray.hooks_end.set()
    soon(lambda: not server.list("pods") and not ray.up)
    assert "Killing" in reasons(server)
    assert "FailedPreStopHook" not in reasons(server)


def test_a_hook_is_cut_off_where_the_grace_ends(
    server: ApiServer, player: KubeRayPlayer, ray: PretendedRay
) -> None:
    player.nodes.keeps_grace = True
    server.create(with_hooks(1))
    reached(server, "Running", "RUNNING")
    server.delete("rayjobs", "run")
    soon(lambda: not server.list("pods") and not ray.up)
    assert "FailedPreStopHook" in reasons(server)


def test_the_player_knows_nothing_of_what_it_tests() -> None:
    seen: set[str] = set()
    waiting = ["kuberay_player", "api_server"]
    while waiting:
        name = waiting.pop()
        file = TESTS / f"{name}.py"
        if name in seen or not file.exists():
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(file.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for one in names:
                assert one.partition(".")[0] not in ("launcher", "rotescale"), (name, one)
                waiting.append(one)
    assert {"player_kueue", "player_ray", "player_rules", "api_store"} <= seen
